"""Make one whole model of a run: the adapter merged, checked against the run, ready to be served.

  honed export runs/mine exported
  honed export runs/mine exported --dtype bfloat16 --ollama
  honed export runs/mine exported --gptq
  honed export runs/mine exported --gguf q8_0 --ollama

The base model is the one that the adapter was trained on; a quantised one is dequantised first. The written model is
read back and must give the run's own logits; greedy answers are compared as well, on rows of the training data. --gptq
then rounds the linear layers to 4 bits, calibrated on rows of the training data, and shows the loss before and after.
--gguf writes one file for llama.cpp instead of a folder for transformers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from honed.errors import storage_errors
from honed.quantities import counted

if TYPE_CHECKING:
    from honed.data.batch.table import TokenTable
    from honed.data.prepare.options import PrepareOptions
    from honed.model.export.export import Comparison, Probe

PROBES = 6
CHECKED = 32  # rows to measure the loss of a 4-bit model on
LONGEST = 256  # tokens of a row for comparison or calibration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("folder", metavar="DIR", help="folder of a finished run")
    parser.add_argument("out", metavar="OUT", help="new folder for the model")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 [float32]")
    parser.add_argument("--gguf", nargs="?", const="f16", metavar="KIND", help="a GGUF file: f32, f16 or q8_0 [f16]")
    parser.add_argument("--ollama", action="store_true", help="also write a Modelfile")
    parser.add_argument("--gptq", action="store_true", help="4 bits by GPTQ (pip install llmcompressor)")
    parser.add_argument("--calibration-rows", type=int, default=128, metavar="N", help="rows for --gptq [128]")


def run(args: argparse.Namespace, command: str) -> int:
    """Exports and prints how close the result is."""
    from honed.cli.console import quiet_libraries

    quiet_libraries()
    from honed.model.export.export import check_places, export
    from honed.model.export.ollama import role_texts
    from honed.model.load.load import load_tokenizer

    folder, out = Path(args.folder).expanduser(), Path(args.out).expanduser()
    check_places(folder, out, args.dtype)
    _check_gptq(args)
    tokenizer = load_tokenizer(str(folder))
    _check_gguf(args, folder, tokenizer)
    if args.ollama:
        role_texts(tokenizer)  # fails before the work instead of after it
    table = rows_of(folder, tokenizer, count=args.calibration_rows + CHECKED if args.gptq else PROBES)
    with storage_errors(out, elsewhere="name another folder", every=True):
        out.parent.mkdir(parents=True, exist_ok=True)
        TemporaryDirectory(dir=out.parent).cleanup()  # checks before the work that the folder can be written
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-whole-") as beside:
        whole = Path(beside) / "model" if args.gptq or args.gguf else out
        found = export(folder, whole, dtype=args.dtype, probes=probes_of(table))
        print(f"{out}: the trained model as {args.dtype}. Against the run, on {counted(found.tokens, 'token')}:")
        print(agreement(found))
        if args.gptq:
            _to_4_bits(whole, out, table, args.calibration_rows)
        if args.gguf:
            _to_gguf(whole, out, table, args.gguf)
        if args.ollama:
            write_modelfile(out, tokenizer, whole, source=_gguf_name(args.gguf) if args.gguf else ".")
    if args.ollama:
        print(f"{out / 'Modelfile'}   ollama create NAME -f {out / 'Modelfile'}")
    return 0


def agreement(found: Comparison) -> str:
    """How close two models are, on three lines."""
    return (
        f"  logits differ by {found.change:.2g} of their spread ({found.allowed:.2g} may be)\n"
        f"  {found.same_choices} of {found.tokens} likeliest tokens are the same\n"
        f"  {found.same_answers} of {found.answers} greedy answers are the same"
    )


def rows_of(folder: Path, tokenizer: Any, *, count: int) -> TokenTable:
    """The first rows of the run's training data; of the starter set if they are gone or the folder is not a run's."""
    from honed.data.prepare.options import PrepareOptions
    from honed.data.read.sources import STARTER
    from honed.errors import DataError
    from honed.recipe import load_recipe
    from honed.train.run.run import training_arguments

    if (folder / "recipe.yaml").is_file():
        recipe = load_recipe(folder / "recipe.yaml")
        files = list(recipe.data.files) if not recipe.data.sources else recipe.data.sources[0]["files"]
        try:
            return _table(files, training_arguments(recipe).prepare_options(), tokenizer, count)
        except DataError:
            print("note: the run's data are gone; compared on the starter set instead")
    return _table(STARTER, PrepareOptions(), tokenizer, count)


def probes_of(table: TokenTable) -> list[Probe]:
    """The rows on which models are compared."""
    from honed.model.export.export import Probe

    documents = [table.row([number]) for number in range(min(len(table), PROBES))]
    return [Probe(ids=d.input_ids.tolist(), n_prompt=int((d.weights > 0).argmax())) for d in documents]


def _table(files: Any, options: PrepareOptions, tokenizer: Any, count: int) -> TokenTable:
    from dataclasses import replace
    from itertools import islice

    from honed.data.prepare.prepare import prepare
    from honed.data.read.sources import read_rows

    rows = [row for _, row in islice(read_rows(files), count)]
    short = replace(options, packing=False, max_length=LONGEST, overlong="truncate", bad_rows="drop")
    return prepare(rows, tokenizer, short, desc="Rows to compare on").rows.table


def _check_gptq(args: argparse.Namespace) -> None:
    """Refuses what 4 bits do not support, before anything is loaded."""
    from honed.errors import ModelError
    from honed.model.export.gptq import need_llmcompressor

    if not args.gptq:
        return
    need_llmcompressor()
    if args.ollama:
        raise ModelError("Ollama does not read GPTQ models.", fix="export twice, once with --ollama, once with --gptq")
    if args.calibration_rows < 1:
        raise ModelError(f"--calibration-rows is {args.calibration_rows}.", fix="give at least 1")


def _check_gguf(args: argparse.Namespace, folder: Path, tokenizer: Any) -> None:
    """Refuses what llama.cpp would run differently, before anything is loaded."""
    from honed.errors import ModelError

    if args.gguf is None:
        return
    from honed.model.export.gguf import check_gguf, config_of

    if args.gptq or args.dtype != "float32":
        other = "--gptq" if args.gptq else "--dtype"
        raise ModelError(f"--gguf and {other} both name the number format.", fix="leave one of them out")
    check_gguf(config_of(folder), tokenizer, args.gguf)


def _gguf_name(kind: str) -> str:
    return f"model-{kind}.gguf"


def _to_gguf(whole: Path, out: Path, table: TokenTable, kind: str) -> None:
    """Writes the file into a new folder, and prints how close it is to the whole model."""
    from honed.model.export.gguf import export_gguf

    made = whole.parent / "gguf"
    made.mkdir()
    found = export_gguf(whole, made / _gguf_name(kind), kind=kind, probes=probes_of(table))
    if out.exists():
        out.rmdir()
    made.replace(out)
    print(f"  then as {_gguf_name(kind)}:\n{agreement(found)}")


def _to_4_bits(whole: Path, out: Path, table: TokenTable, n_calibration: int) -> None:
    """Calibrates on the first rows and measures on the others; if there are none, on the last of the same rows."""
    from honed.model.export.gptq import Row, export_gptq

    documents = [table.row([number]) for number in range(len(table))]
    rows = [Row(ids=d.input_ids.tolist(), trained=(d.weights > 0).tolist()) for d in documents]
    others = rows[n_calibration:]
    found = export_gptq(whole, out, calibration=rows[:n_calibration], check=others or rows[-CHECKED:])
    used = counted(min(len(rows), n_calibration), "row")
    print(
        f"  then in 4 bits, {found.group} weights to a scale, calibrated on {used}\n"
        f"  loss on {counted(found.tokens, 'trained token')} of {'other' if others else 'the same'} rows: "
        f"{found.before:.4f} before, {found.after:.4f} after"
    )


def write_modelfile(out: Path, tokenizer: Any, whole: Path, *, source: str) -> None:
    """Writes the Modelfile into `out`, with the stops of the generation config in `whole`.

    Args:
        source: path of the weights, relative to `out`.

    Raises:
        TemplateError: the chat template cannot be expressed in Ollama's template language.
    """
    from transformers import GenerationConfig

    from honed.model.export.ollama import modelfile

    eos = GenerationConfig.from_pretrained(whole).eos_token_id
    stops = tokenizer.convert_ids_to_tokens([eos] if isinstance(eos, int) else list(eos or []))
    (out / "Modelfile").write_text(modelfile(tokenizer, stops, source=source), encoding="utf-8")
