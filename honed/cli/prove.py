"""Check on your own model and rows that honed's shortcuts change nothing: a number and its bound for each statement.

  honed prove recipe.yaml
  honed prove --model Qwen/Qwen3-0.6B --data my_rows.jsonl data.train_on=last lora=null
  honed prove recipe.yaml --json proof.json
  honed prove recipe.yaml --size whole --device cuda --dtype bfloat16

The recipe and its keys are those of `honed train`. Statements are checked in float64 on the CPU: on the whole model if
it is small, else on its first layers, else on a copy of its architecture with few layers and random weights; the first
line says which. The exit status is 1 if a statement fails. docs/proof.md explains each statement.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.errors import RunError
from honed.quantities import counted, duration_text

if TYPE_CHECKING:
    from honed.prove.statement import Finding
    from honed.prove.subject import Subject

WIDTH = 62
TABLE = f"{'statement':{WIDTH}} {'measured':>9} {'bound':>7}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("items", nargs="*", metavar="RECIPE | key=value", help="a recipe first, then changes to it")
    parser.add_argument("--model", help="short for model=...")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="short for data.files=...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings to a file, too")
    parser.add_argument("--size", choices=("auto", "whole", "cut", "shrunken"), default="auto", help="of the model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps [cpu]")
    parser.add_argument("--dtype", choices=("float64", "float32", "bfloat16"), default="float64", help="[float64]")


def run(args: argparse.Namespace, command: str) -> int:
    """Checks and prints; returns 1 if a statement fails."""
    from honed.cli.console import quiet_libraries
    from honed.cli.recipe_arguments import recipe_of

    recipe = recipe_of(args)
    quiet_libraries()
    from honed.prove.prove import STATEMENTS, Place, expected_seconds, findings, make_subject
    from honed.prove.statement import FAILED

    subject = make_subject(recipe, Place(size=args.size, device=args.device, dtype=args.dtype))
    print(heading(recipe.model, subject), flush=True)
    statements = dict(STATEMENTS)
    with under_way("one step, to tell how long it will take"):
        expected = expected_seconds(subject, statements)
    print(f"{time_line(len(statements), expected)}\n\n{TABLE}", flush=True)
    found: list[Finding] = []
    checked = findings(subject, statements)
    for number, name in enumerate(statements, start=1):
        left = sum(expected.get(later, 0.0) for later in list(statements)[number - 1 :])
        with under_way(f"{number}/{len(statements)}, about {duration_text(max(1.0, left))} left: {name}"):
            found.append(next(checked))
        print(line(found[-1]), flush=True)
    print(summary(found))
    if args.json is not None:
        write_json(args.json, {"command": command, **about(recipe.model, subject)}, found)
    return int(any(finding.status == FAILED for finding in found))


def about(model: str, subject: Subject) -> dict[str, Any]:
    """The model and data that were checked."""
    return {
        "model": model,
        "sums": subject.model.words,
        "runs": subject.drill.words,
        "rows": subject.sample.ledger.rows_in,
        "computed_with": subject.size,
        "left_out": subject.left_out,
    }


def heading(model: str, subject: Subject) -> str:
    """The first lines: the model and data that are checked."""
    known = about(model, subject)
    left_out = textwrap.fill(", ".join(known["left_out"]), width=100, initial_indent="", subsequent_indent=" " * 9)
    aside = f"  aside  {left_out}: no statement looks at them\n" if left_out else ""
    return (
        f"{model}\n  sums   on {known['sums']}\n  runs   on {known['runs']}\n"
        f"  rows   {counted(known['rows'], 'row')}, from the first on; computed with {known['computed_with']}\n{aside}"
    ).rstrip()


def time_line(count: int, expected: dict[str, float]) -> str:
    """The number of statements and, if a step could be timed, the approximate time they will take."""
    about = f", about {duration_text(max(1.0, sum(expected.values())))}" if expected else ""
    return f"  time   {counted(count, 'statement')}{about}"


@contextmanager
def under_way(what: str) -> Iterator[None]:
    """Shows in a terminal what is being done, until it is done; prints nothing elsewhere."""
    terminal = sys.stderr.isatty()
    if terminal:
        width = shutil.get_terminal_size().columns - 1
        print(f"  ... {what}"[:width], end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if terminal:
            print("\x1b[2K", end="\r", file=sys.stderr, flush=True)


def line(finding: Finding) -> str:
    """A statement on two lines: its numbers, then what they were measured on."""
    numbers = f"{'':17}"
    if finding.measured is not None and finding.bound is not None:
        numbers = (
            f"{finding.measured:9.2g} {finding.bound:7.0e}" if finding.bound else f"{finding.measured:9.2g}       0"
        )
    detail = textwrap.fill(finding.detail, width=110, initial_indent="    ", subsequent_indent="    ")
    return f"{finding.statement:{WIDTH}} {numbers}  {finding.status}\n{detail}"


def summary(found: list[Finding]) -> str:
    """How many statements hold, fail and were not checked, and the time."""
    counts = {status: sum(f.status == status for f in found) for status in ("pass", "FAIL", "not checked")}
    seconds = sum(finding.seconds for finding in found)
    return f"\n{', '.join(f'{n} {status}' for status, n in counts.items())}; {seconds:.0f} s"


def write_json(path: Path, known: dict[str, Any], found: list[Finding]) -> None:
    """The findings as one JSON object.

    Raises:
        RunError: the file cannot be written.
    """
    from dataclasses import asdict

    text = json.dumps({**known, "statements": [asdict(finding) for finding in found]}, indent=1, ensure_ascii=False)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}", fix="name another file") from None
