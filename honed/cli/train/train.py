"""Train a model on your rows, as a recipe or the options say.

  honed train lora model=Qwen/Qwen3-0.6B data.files=rows.jsonl --dry-run     (what would happen)
  honed train lora model=Qwen/Qwen3-0.6B data.files=rows.jsonl
  honed train recipe.yaml learning_rate=1e-4 data.max_length=2048
  honed train lora data.packing=true --show-recipe > mine.yaml               (the whole recipe, to edit)
  honed train --model MODEL --data rows.jsonl                                (without a recipe)

Recipes that come with honed: full, lora, qlora, packing, moe, multi_gpu, vlm, minimind_pretrain, minimind_sft, demo.

Keys that matter most (key=value, or the same in the recipe's YAML; --help-all shows all of them):

 model and run
  model                  name, folder or Hub id; with an adapter's folder, that adapter is trained
                         further                                                  [smollm2-135m-instruct]
  dtype                  float32, bfloat16; picked by measuring when absent
  quantization           nf4, fp4, int8, nf4+experts: train the adapter on a quantised model
  engine                 trainer; plain: the loop of docs/loop.md                 [trainer]
  output                 folder of the run                                        [runs/latest]
  seed                   of everything that is drawn                              [0]

 data
  data.files             JSON, JSONL (also .gz, .zst), Parquet, CSV, Arrow; a folder, 'data/*.jsonl',
                         a Hub id (owner/name or owner/name@config:split); starter   [starter]
  data.sources           in a recipe, instead: several {files, weight, cap, repeat, system, format, ...}
  data.format            auto, messages, sharegpt, alpaca, prompt_completion, text, tokens   [auto]
  data.columns           other names of columns, such as {messages: chat, role: who}
  data.template          auto (the tokenizer's own), plain, or a Jinja file       [auto]
  data.system            system prompt for rows that have none
  data.train_on          assistant, last, all, completion                         [assistant]
  data.train_reasoning   false gives reasoning weight 0; so does data.train_tool_calls to tool calls
  data.max_length        longest row, and length of a packed one, in tokens       [1024]
  data.overlong          drop, truncate, split, error                             [drop]
  data.packing           true: several documents share a row, isolated from each other   [false]
  data.packing_strategy  bfd (tears no document), bfd_split, wrapped              [bfd]
  data.share_prefixes    auto: what documents begin with in common is computed once   [false]
  data.held_out          file to evaluate on
  data.eval_share        or a share of the rows, such as 0.02; rows alike stay on one side
  data.bad_rows          error, drop                                              [error]
  data.streaming         true reads rows while training, in constant memory; needs max_steps   [false]
  data.workers           processes that prepare the rows                          [1]
  data.cache             false prepares anew each time                            [true]

 adapter
  lora                   null trains all weights
  lora.r, lora.alpha     rank, and scale (alpha / r)                              [16, 32]
  lora.dropout           of the adapter's input                                   [0]
  lora.target_modules    names of layers, such as [q_proj, v_proj]                [all-linear]
  lora.use_dora, lora.use_rslora, lora.init (pissa, ...), lora.modules_to_save (lm_head, ...)

 steps
  learning_rate          highest                                                  [2e-4]
  num_train_epochs       passes over the rows; max_steps counts steps instead     [1]
  per_device_train_batch_size, gradient_accumulation_steps                        [8, 1]
  lr_scheduler_type, warmup_steps                                                 [cosine, 0.05 of all steps]
  gradient_checkpointing true: less memory, more time; selective: half of it; auto: as much as
                         free memory or memory_budget (in GB) makes necessary      [auto]
  save_strategy, save_steps, eval_strategy, eval_steps, logging_steps, weight_decay, max_grad_norm, report_to, ...

 answers
  samples.prompts        questions answered before and after; starter
  samples.form           regular expression that answers should match
"""

from __future__ import annotations

import argparse

from honed.cli.interrupts import INTERRUPTED, saving_on_ctrl_c
from honed.cli.recipe_arguments import recipe_of
from honed.cli.train.dry_run import FLAG, show
from honed.cli.train.help import HelpAll
from honed.collector import no_collections, set_aside


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("items", nargs="*", metavar="RECIPE | key=value", help="a recipe first, then changes to it")
    parser.add_argument("--model", help="short for model=...")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="short for data.files=...")
    parser.add_argument("--engine", choices=("trainer", "plain"), help="short for engine=...")
    parser.add_argument("--output", metavar="DIR", help="short for output=...")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished run in the output folder")
    parser.add_argument(FLAG, action="store_true", help="show what would happen; train and write nothing")
    parser.add_argument(
        "--show-recipe", action="store_true", help="print the recipe with every default, as YAML, and leave"
    )
    parser.add_argument("--help-all", action=HelpAll, help="show every key and leave")


def run(args: argparse.Namespace, command: str) -> int:
    """Trains and prints the result."""
    from honed.cli.console import quiet_libraries, show_result
    from honed.recipe import as_yaml

    recipe = recipe_of(args)
    quiet_libraries()
    if args.show_recipe:
        print(as_yaml(recipe), end="")
        return 0
    if args.dry_run:
        return show(recipe, command, overwrite=args.overwrite)
    with no_collections():
        from honed.train.run.run import engine_of
        from honed.train.run.run import run as run_recipe

        engine_of(recipe)  # imports its libraries now
    with set_aside(), saving_on_ctrl_c() as pressed:
        result = run_recipe(recipe, command=command, say=print, overwrite=args.overwrite)
    if result.finished and result.first:
        show_result(result.folder, result.samples)
    return INTERRUPTED if pressed.is_set() and not result.finished else 0
