"""Look at training data before training: `check` finds what is wrong, `show` shows what the model will see.

honed data check rows.jsonl --model smollm2-135m-instruct
honed data check rows.jsonl --eval held_out.jsonl data.train_on=last --json
honed data check recipe.yaml                       (the recipe's own data, model and options)
honed data show rows.jsonl --row 17 --model smollm2-135m-instruct --tokens
honed data show rows.jsonl --html data.html --model smollm2-135m-instruct
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.cli.data.reading import Plan, add_reading, find_row, load_tokenizer_and_stops, read_plan
from honed.quantities import counted

if TYPE_CHECKING:
    from honed.data.lint.lint import Checked

SEVERITIES = ("error", "warning", "never")
ROWS_ON_PAGE = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's actions and their options."""
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
    below.add_argument(
        "--row", type=_positive, metavar="N", help="the row at line N of the file, in the terminal [first]"
    )
    below.add_argument("--tokens", action="store_true", help="mark where tokens begin")
    below.add_argument("--ids", action="store_true", help="the id of every token, too")
    below.add_argument("--context", choices=("short", "all"), default="short", help="of long untrained text [short]")
    below.add_argument("--html", metavar="OUT", type=Path, help="write a page about the whole file instead")
    below.add_argument("--rows", type=_span, metavar="A-B", help="the rows on the page, counted from 1 [from 1]")
    below.add_argument(
        "--limit", type=_positive, default=ROWS_ON_PAGE, metavar="N", help=f"most rows on the page [{ROWS_ON_PAGE}]"
    )
    below.add_argument("--eval", metavar="FILE", help="as for `check`; for the page")


def run(args: argparse.Namespace, command: str) -> int:
    """Runs the action."""
    return check_rows(args) if args.action == "check" else show_rows(args, command)


def check_rows(args: argparse.Namespace) -> int:
    """Reads every row as training would and prints the ledger and the findings, the most severe first.
    The status is 1 if something was found (see --fail-on), 2 if a file cannot be read, else 0.
    Without a model, checks that need tokens are left out."""
    from honed.cli.data.text import as_json, as_text, fails

    checked, plan, _ = _checked(read_plan(args))
    print(as_json(checked, plan) if args.json else as_text(checked, plan))
    return int(fails(checked, args.fail_on))


def show_rows(args: argparse.Namespace, command: str) -> int:
    """Shows one row in the terminal (the first, or --row N), with trained text highlighted and control characters
    escaped; or, with --html, writes a page about the whole file that needs no network."""
    plan = read_plan(args)
    if args.html is not None:
        return write_page(args, plan, command)
    import sys

    from honed.report.row.text import Style, row_text

    tokenizer, _ = load_tokenizer_and_stops(plan.model, plan.files)
    plan = plan.fitted(tokenizer)
    style = Style.of(sys.stdout, tokens=args.tokens or args.ids, ids=args.ids, whole=args.context == "all")
    print(row_text(find_row(plan.files, args.row), plan.options, tokenizer, style))
    if args.row is None:
        print("The first row; --row N shows another, --html OUT.html a page about all of them.")
    return 0


def write_page(args: argparse.Namespace, plan: Plan, command: str) -> int:
    """Writes the page of `honed data show --html`."""
    from honed.report.data.page import PageFacts, write_data_page

    first, last = args.rows or (1, args.limit)
    wanted = range(first - 1, min(last, first - 1 + args.limit))
    checked, plan, tokenizer = _checked(plan, keep=wanted)
    facts = PageFacts(files=plan.files, model=plan.model, command=command, options=plan.options)
    path = write_data_page(args.html, checked, facts, getattr(tokenizer, "tokenizer", tokenizer))
    print(f"{path}   {counted(checked.ledger.rows_in, 'row')} checked, {len(checked.kept):,} of them to look at")
    return 0


def _checked(plan: Plan, *, keep: Container[int] = ()) -> tuple[Checked, Plan, Any]:
    """The findings, the plan with its maximum length lowered to the tokenizer's, and the tokenizer."""
    from honed.data.lint.lint import check

    tokenizer, stops = load_tokenizer_and_stops(plan.model, plan.files)
    plan = plan.fitted(tokenizer)
    evaluation = plan.evaluation or None
    found = check(list(plan.files), plan.options, tokenizer=tokenizer, stop_ids=stops, evaluation=evaluation, keep=keep)
    return found, plan, tokenizer


def _positive(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError("it must be a whole number, 1 or more")
    return int(text)


def _span(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]*)-([1-9][0-9]*)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError("write A-B, such as 101-200")
    return int(match[1]), int(match[2])
