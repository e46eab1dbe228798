"""Train a model on your rows, as a recipe or the options say.

  honed train --model Qwen/Qwen3-0.6B --data my_rows.jsonl
  honed train recipe.yaml learning_rate=1e-4 data.max_length=2048
  honed train demo output=runs/mine          (a recipe that comes with honed)

Keys that matter most (key=value, or the same in the recipe's YAML):
  model                 name, folder or Hub id                   [smollm2-135m-instruct]
  dtype                 float32, bfloat16; picked by measuring when absent
  data.files            JSON, JSONL (also .gz, .zst), Parquet, CSV, Arrow; a folder, 'data/*.jsonl',
                        a Hub id (owner/name or owner/name@config:split); 'starter'   [starter]
  data.sources          in a recipe: several {files, weight, cap, repeat, system, format, template_arguments}
  data.format           auto, messages, sharegpt, alpaca, prompt_completion, text, tokens
  data.template         auto (the tokenizer's own), plain, or a Jinja file
  data.columns          other names of columns: {messages: chat, role: who} or {prompt: question, completion: answer}
  data.system           system prompt for rows that have none
  data.train_on         assistant, last, all, completion         [assistant]
  data.train_roles      roles whose turns are trained            [assistant]
  data.train_reasoning, data.train_tool_calls   false gives them weight 0 inside trained turns
  data.max_length       longest row in tokens                    [1024]
  data.overlong         drop, truncate, split, error                    [drop]
  data.packing          true packs rows, isolated from each other
  data.packing_strategy bfd (tears no document), bfd_split, wrapped
  data.cache            false prepares anew each time            [true]
  data.bad_rows         error, drop                              [error]
  data.held_out         file to evaluate on
  data.eval_share       or a share of the rows, such as 0.02; rows alike stay on one side
  data.streaming        true reads rows while training, in constant memory; needs max_steps
  lora                  null trains all weights
  lora.r, lora.alpha, lora.dropout, lora.target_modules          [16, 32, 0, all-linear]
  lora.use_dora, lora.use_rslora, lora.init (pissa, ...), lora.modules_to_save (lm_head, ...)
  quantization          nf4, fp4, int8: train the adapter on a quantised model
  samples.prompts       questions answered before and after; 'starter'
  samples.form          regular expression that answers should match
  engine                trainer, or plain: the loop of docs/loop.md, which goes on by itself after a kill   [trainer]
  output                folder of the run                        [runs/latest]
  learning_rate, num_train_epochs, per_device_train_batch_size, gradient_accumulation_steps,
  max_steps, warmup_steps, lr_scheduler_type, weight_decay, seed, eval_strategy, save_strategy, ...
                        every argument of transformers' TrainingArguments and of honed.SFTConfig
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from honed.errors import RecipeError

if TYPE_CHECKING:
    from honed.recipe import Recipe

RECIPE_SUFFIXES = (".yaml", ".yml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("items", nargs="*", metavar="RECIPE | key=value", help="a recipe first, then changes to it")
    parser.add_argument("--model", help="short for model=...")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="short for data.files=...")
    parser.add_argument("--engine", choices=("trainer", "plain"), help="short for engine=...")
    parser.add_argument("--output", metavar="DIR", help="short for output=...")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished run in the output folder")


def run(args: argparse.Namespace, command: str) -> int:
    """Trains and shows the result."""
    from honed.cli.console import quiet_libraries, show_result

    recipe = recipe_of(args)
    quiet_libraries()
    from honed.train.run import run as run_recipe

    result = run_recipe(recipe, command=command, say=print, overwrite=args.overwrite)
    if result.finished:
        show_result(result.folder, result.samples)
    return 0


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that a command line names, with its changes; options that are not there change nothing.

    Raises:
        RecipeError: see `load_recipe` and `divide`.
    """
    from honed.recipe import load_recipe

    # `--data FILE learning_rate=1e-4`: argparse takes what follows for files
    files = [item for item in args.data or () if "=" not in item or Path(item).exists()]
    path, changes = divide([*args.items, *(item for item in args.data or () if item not in files)])
    shorts = ((key, getattr(args, key, None)) for key in ("model", "engine", "output"))
    changes += [f"{key}={_quoted(value)}" for key, value in shorts if value]
    if files:
        changes.append(f"data.files=[{', '.join(map(_quoted, files))}]")
    return load_recipe(path, changes)


def divide(items: list[str]) -> tuple[Path | None, list[str]]:
    """The recipe's path, if one is named first, and the changes to it.

    Raises:
        RecipeError: an item is neither a recipe nor key=value.
    """
    if not items or "=" in items[0]:
        return None, list(items)
    return find_recipe(items[0]), items[1:]


def find_recipe(name: str) -> Path:
    """A YAML file, or a recipe that comes with honed.

    Raises:
        RecipeError: there is no such recipe.
    """
    packaged = Path(__file__).parent.parent / "recipes"
    if name.endswith(RECIPE_SUFFIXES):
        path = Path(name)
        if path.is_file():
            return path
        raise RecipeError(f"No such recipe: {name}", fix="check the path")
    path = packaged / f"{name}.yaml"
    if path.is_file():
        return path
    known = ", ".join(sorted(file.stem for file in packaged.glob("*.yaml")))
    raise RecipeError(
        f"{name!r} is neither a recipe file (.yaml) nor one that comes with honed ({known}) nor key=value.",
        fix="for data, write --data FILE; for a model, --model NAME",
    )


def _quoted(text: str) -> str:
    """As YAML that is this text, whatever is in it."""
    return "'" + text.replace("'", "''") + "'"
