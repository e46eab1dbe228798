"""Look at training data before it is trained on: `check` finds what is wrong, `show` shows what the model will see.

honed data check rows.jsonl --model smollm2-135m-instruct
honed data check rows.jsonl --eval held_out.jsonl data.train_on=last --json
honed data check recipe.yaml                       (the recipe's own data, model and options)
honed data show rows.jsonl --row 17 --model smollm2-135m-instruct --tokens
honed data show rows.jsonl --html data.html --model smollm2-135m-instruct
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.errors import DataError, RecipeError

if TYPE_CHECKING:
    from honed.data.prepare.prepare import PrepareOptions
    from honed.recipe import DataRecipe

SEVERITIES = ("error", "warning", "never")
ROWS_ON_PAGE = 200
MIXED = "All rows of data.sources were checked, with the options of the data section: no weights, caps or own options."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions and their options."""
    actions = parser.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")
    below = actions.add_parser("check", help="read every row and say what is wrong", description=check_rows.__doc__)
    add_reading(below)
    below.add_argument("--eval", metavar="FILE", help="evaluation rows that must not be among the others")
    below.add_argument(
        "--fail-on", choices=SEVERITIES, default="error", help="findings from which the status is 1 [error]"
    )
    below.add_argument("--json", action="store_true", help="one JSON object on standard output instead of text")
    below = actions.add_parser("show", help="show rows as the model will see them", description=show_rows.__doc__)
    add_reading(below)
    below.add_argument("--row", type=_positive, metavar="N", help="the row at line N of the file, in the terminal")
    below.add_argument("--tokens", action="store_true", help="mark where tokens begin")
    below.add_argument("--ids", action="store_true", help="the id of every token, too")
    below.add_argument("--context", choices=("short", "all"), default="short", help="of long untrained text [short]")
    below.add_argument("--html", metavar="OUT", type=Path, help="write a page about the whole file instead")
    below.add_argument("--rows", type=_span, metavar="A-B", help="the rows on the page, counted from 1 [from 1]")
    below.add_argument(
        "--limit", type=_positive, default=ROWS_ON_PAGE, metavar="N", help=f"most rows on the page [{ROWS_ON_PAGE}]"
    )
    below.add_argument("--eval", metavar="FILE", help="as for `check`; for the page")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Options that say what is read and how."""
    parser.add_argument(
        "items",
        nargs="+",
        metavar="FILE | RECIPE | key=value",
        help="rows, or a recipe; then changes to the data section of a recipe, such as overlong=truncate",
    )
    parser.add_argument("--model", help="name, folder or Hub id; only its tokenizer is loaded")
    parser.add_argument("--template", help="short for data.template=...")
    parser.add_argument("--train-on", help="short for data.train_on=...")
    parser.add_argument("--max-length", help="short for data.max_length=...")


def run(args: argparse.Namespace, command: str) -> int:
    """Runs the action."""
    return check_rows(args) if args.action == "check" else show_rows(args, command)


def check_rows(args: argparse.Namespace) -> int:
    """Reads every row as training would and prints the ledger and what was found, the gravest first.
    The status is 1 where something was found (see --fail-on), 2 where a file cannot be read, else 0.
    Without a model, whatever needs tokens is left out."""
    from honed.cli.data_text import as_json, as_text, fails
    from honed.data.lint.lint import check

    plan = read_plan(args)
    tokenizer, stops = load_tokenizer_and_stops(plan.model, plan.files)
    checked = check(
        list(plan.files), plan.options, tokenizer=tokenizer, stop_ids=stops, evaluation=plan.evaluation or None
    )
    print(as_json(checked, plan) if args.json else as_text(checked, plan))
    return int(fails(checked, args.fail_on))


def show_rows(args: argparse.Namespace, command: str = "") -> int:
    """Shows one row in the terminal: what is trained stands out, control characters are escaped; or, with --html,
    writes a page about the whole file that needs no network."""
    plan = read_plan(args)
    if args.html is not None:
        return write_page(args, plan, command)
    if args.row is None:
        raise DataError("Which row?", fix="add --row N for one row, or --html out.html for a page about all of them")
    import sys

    from honed.report.row_text import Style, row_text

    tokenizer, _ = load_tokenizer_and_stops(plan.model, plan.files)
    style = Style.of(sys.stdout, tokens=args.tokens or args.ids, ids=args.ids, whole=args.context == "all")
    print(row_text(find_row(plan.files, args.row), plan.options, tokenizer, style))
    return 0


def write_page(args: argparse.Namespace, plan: Plan, command: str) -> int:
    """The page of `honed data show --html`."""
    from honed.data.lint.lint import check
    from honed.report.data_page import PageFacts, write_data_page

    first, last = args.rows or (1, args.limit)
    wanted = range(first - 1, min(last, first - 1 + args.limit))
    tokenizer, stops = load_tokenizer_and_stops(plan.model, plan.files)
    checked = check(
        list(plan.files),
        plan.options,
        tokenizer=tokenizer,
        stop_ids=stops,
        evaluation=plan.evaluation or None,
        keep=wanted,
    )
    facts = PageFacts(files=plan.files, model=plan.model, command=command, options=plan.options)
    path = write_data_page(args.html, checked, facts, getattr(tokenizer, "tokenizer", tokenizer))
    print(f"{path}   {checked.ledger.rows_in:,} rows checked, {len(checked.kept):,} of them to look at")
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the arguments ask for."""

    files: tuple[str, ...]
    model: str | None
    options: PrepareOptions
    evaluation: str | None
    notes: tuple[str, ...] = ()


def read_plan(args: argparse.Namespace) -> Plan:
    """Files, model and options, from the arguments and a recipe where one is named.

    Raises:
        RecipeError: an option is unknown or has a wrong value.
        DataError: no file is named.
    """
    from dataclasses import fields

    from honed.cli.train import RECIPE_SUFFIXES
    from honed.data.prepare.prepare import PrepareOptions
    from honed.recipe import load_recipe

    changes = [item for item in args.items if "=" in item and not Path(item).exists()]
    files = [item for item in args.items if item not in changes]
    recipes = [item for item in files if item.endswith(RECIPE_SUFFIXES)]
    if len(recipes) > 1 or not files:
        raise DataError("Name files with rows, or one recipe.", fix="for example: honed data check rows.jsonl")
    changes = [*_shortcuts(args), *map(_data_key, changes)]
    recipe = load_recipe(Path(recipes[0]) if recipes else None, changes)
    rows = tuple(item for item in files if item not in recipes) or _recipe_files(recipe.data)
    options = {f.name: getattr(recipe.data, f.name) for f in fields(PrepareOptions) if hasattr(recipe.data, f.name)}
    return Plan(
        files=rows,
        model=args.model or (recipe.model if recipes else None),
        options=PrepareOptions(**options),
        evaluation=args.eval or recipe.data.held_out,
        notes=(MIXED,) if recipes and recipe.data.sources else (),
    )


def _recipe_files(data: DataRecipe) -> tuple[str, ...]:
    """The files of a recipe; of a mixture those of all its sources, read in full with the options of the section."""
    from honed.data.mix.mixture import mixture_from

    if not data.sources:
        return data.files
    parts = mixture_from(data.sources, seed=0).parts
    return tuple(dict.fromkeys(file for part in parts for file in part.data))


def find_row(files: tuple[str, ...], number: int) -> tuple[Any, Any]:
    """The source and the row at this line (of JSON lines) or with this number (of other files), from 1.

    Raises:
        DataError: there is no such row, or several files are named.
    """
    from honed.data.read.sources import read_rows

    if len(files) != 1:
        raise DataError(f"--row {number} of which file? {len(files)} are named.", fix="name one file")
    last = 0
    for source, row in read_rows(files[0]):
        if source.row == number:
            return source, row
        last = source.row
    raise DataError(f"{files[0]} has no row {number}; its last is {last}.", fix="choose a row up to that one")


def load_tokenizer_and_stops(model: str | None, files: tuple[str, ...] = ()) -> tuple[Any, tuple[int, ...]]:
    """The model's tokenizer and the ids at which its own generation config stops; nothing of it without a model.

    Where the files show images, it is the model's processor, if it sees.

    Raises:
        ModelError: there is no such model.
    """
    if model is None:
        return None, ()
    from honed.cli.console import quiet_libraries
    from honed.data.vision.template import shows_images
    from honed.model.load import load_processor, load_tokenizer, resolve, sees_images

    quiet_libraries()
    stops = configured_stops(resolve(model))
    sees = shows_images(list(files)) and sees_images(model)  # of a model of text alone, the check names such rows
    return (load_processor if sees else load_tokenizer)(model), stops


def configured_stops(folder: str) -> tuple[int, ...]:
    """`eos_token_id` of generation_config.json, or else of config.json; none where neither is at hand."""
    import json

    from transformers.utils import cached_file

    for name in ("generation_config.json", "config.json"):
        try:
            path = cached_file(folder, name, _raise_exceptions_for_missing_entries=False)
            found = json.loads(Path(path).read_text(encoding="utf-8")).get("eos_token_id") if path else None
        except (OSError, ValueError):
            continue
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()


def _shortcuts(args: argparse.Namespace) -> list[str]:
    given = {"template": args.template, "train_on": args.train_on, "max_length": args.max_length}
    return [f"data.{key}={value}" for key, value in given.items() if value is not None]


def _data_key(change: str) -> str:
    """The change with its section; only those of the data section mean something here."""
    from honed.recipe import DataRecipe, suggest

    key = change.partition("=")[0].removeprefix("data.")
    known = [name for name in DataRecipe.__dataclass_fields__ if name != "files"]
    if key.partition(".")[0] not in known:
        raise RecipeError(f"Unknown key {key!r}: it is not in the data section of a recipe.", fix=suggest(key, known))
    return f"data.{change.removeprefix('data.')}"


def _positive(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError("it must be a whole number, 1 or more")
    return int(text)


def _span(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]*)-([1-9][0-9]*)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError("write A-B, such as 101-200")
    return int(match[1]), int(match[2])
