"""Make one whole model of a run: the adapter merged, checked against the run, ready to be served.

  honed export runs/mine exported
  honed export runs/mine exported --dtype bfloat16 --ollama

The base model is the one that the adapter was trained on; a quantised one is dequantised first. What was written is
read back and must give the run's own logits, and greedy answers are compared, on rows of the training data.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from honed.data.prepare import PrepareOptions
    from honed.model.export import Probe

PROBES = 6
LONGEST = 256  # tokens of a row that is compared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("folder", metavar="DIR", help="folder of a finished run")
    parser.add_argument("out", metavar="OUT", help="new folder for the model")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 [float32]")
    parser.add_argument("--ollama", action="store_true", help="write a Modelfile beside it")


def run(args: argparse.Namespace, command: str) -> int:
    """Exports and says how close the result is."""
    from honed.cli.console import quiet_libraries

    quiet_libraries()
    from honed.model.export import check_places, export
    from honed.model.load import load_tokenizer
    from honed.model.ollama import role_texts

    folder, out = Path(args.folder).expanduser(), Path(args.out).expanduser()
    check_places(folder, out, args.dtype)
    tokenizer = load_tokenizer(str(folder))
    if args.ollama:
        role_texts(tokenizer)  # before the work, not after it
    found = export(folder, out, dtype=args.dtype, probes=probes_of(folder, tokenizer))
    print(
        f"{out}: the trained model as {args.dtype}. Against the run, on {found.tokens} tokens:\n"
        f"  logits differ by {found.change:.2g} of their spread ({found.allowed:.2g} may be)\n"
        f"  {found.same_choices} of {found.tokens} likeliest tokens are the same\n"
        f"  {found.same_answers} of {found.answers} greedy answers are the same"
    )
    if args.ollama:
        write_modelfile(out, tokenizer)
        print(f"{out / 'Modelfile'}   ollama create NAME -f {out / 'Modelfile'}")
    return 0


def probes_of(folder: Path, tokenizer: Any) -> list[Probe]:
    """The first rows of the run's training data; of the starter set where the folder is no run's or they are gone."""
    from honed.data.prepare import PrepareOptions
    from honed.data.sources import STARTER
    from honed.errors import DataError
    from honed.recipe import load_recipe
    from honed.train.run import training_arguments

    if (folder / "recipe.yaml").is_file():
        recipe = load_recipe(folder / "recipe.yaml")
        files = list(recipe.data.files) if not recipe.data.sources else recipe.data.sources[0]["files"]
        try:
            return _probes(files, training_arguments(recipe).prepare_options(), tokenizer)
        except DataError:
            print("note: the run's data are gone; compared on the starter set instead")
    return _probes(STARTER, PrepareOptions(), tokenizer)


def _probes(files: Any, options: PrepareOptions, tokenizer: Any) -> list[Probe]:
    from dataclasses import replace
    from itertools import islice

    from honed.data.prepare import prepare
    from honed.data.sources import read_rows
    from honed.model.export import Probe

    rows = [row for _, row in islice(read_rows(files), PROBES)]
    short = replace(options, packing=False, max_length=LONGEST, overlong="truncate", bad_rows="drop")
    table = prepare(rows, tokenizer, short, desc="Rows to compare on").rows.table
    documents = [table.row([number]) for number in range(min(len(table), PROBES))]
    return [Probe(ids=d.input_ids.tolist(), n_prompt=int((d.weights > 0).argmax())) for d in documents]


def write_modelfile(out: Path, tokenizer: Any) -> None:
    """The Modelfile beside the exported model, with the stops of its generation config.

    Raises:
        TemplateError: the chat template cannot be written in Ollama's language.
    """
    from transformers import GenerationConfig

    from honed.model.ollama import modelfile

    eos = GenerationConfig.from_pretrained(out).eos_token_id
    stops = tokenizer.convert_ids_to_tokens([eos] if isinstance(eos, int) else list(eos or []))
    (out / "Modelfile").write_text(modelfile(tokenizer, stops), encoding="utf-8")
