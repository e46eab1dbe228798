"""The command line: parses the verb, runs it, and turns errors that a user can fix into a message and status 2."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from honed import __version__
from honed.cli import cache, demo, eval, export, prove
from honed.cli.chat import chat
from honed.cli.data import data
from honed.cli.doctor import doctor
from honed.cli.generate import generate
from honed.cli.interrupts import INTERRUPTED
from honed.cli.new import new
from honed.cli.plan import plan
from honed.cli.train import train
from honed.collector import fewer_collections
from honed.errors import HonedError, RunError, first_line
from honed.recipe_names import key_called

VERBS = (train, plan, prove, demo, chat, generate, eval, export, data, new, cache, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 2 for an error to fix, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    _make_output_safe()
    if not arguments:
        build_parser().print_help(sys.stderr)
        return 2
    try:
        args = read_arguments(arguments)
        with fewer_collections():
            status = int(args.run(args, shlex.join(["honed", *arguments])))
        sys.stdout.flush()
        return status
    except HonedError as error:
        print(f"honed{_rank()}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        told = RunError(
            f"There is not enough memory: {first_line(error)}",
            fix="see `honed plan`: lower the batch size or max_length, or take a smaller or quantised model",
        )
        print(f"honed{_rank()}: {told}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nhoned: stopped. Nothing is broken; the same command starts again.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `honed ... | head`
        _close_output()
        return 0


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate: the optimizer's states in the first step, a model that is loaded."""
    if "torch" not in sys.modules:
        return False
    from honed.train.trainer.out_of_memory import is_out_of_memory

    return is_out_of_memory(error)


def _rank() -> str:
    """This process's rank, for error messages: each of several processes reports its own errors."""
    return f" (rank {os.environ.get('RANK')})" if os.environ.get("WORLD_SIZE", "1") != "1" else ""


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments; `key=value` items may come before and after options, which argparse alone refuses."""
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(args, "items") or any(item.startswith("-") for item in rest)):
        args.parser.error(unknown_arguments(rest, args.parser, takes_keys=hasattr(args, "items")))
    if rest:
        args.items = [*args.items, *rest]
    return args


def unknown_arguments(rest: Sequence[str], parser: argparse.ArgumentParser, *, takes_keys: bool = False) -> str:
    """Names the unknown arguments, and suggests the option, or the `key=value`, that may have been meant."""
    known = re.findall(r"--[a-z][a-z-]*", parser.format_usage())
    first, equals, value = next((item for item in rest if item.startswith("-")), rest[0]).partition("=")
    found = f"unknown: {' '.join(rest)}"
    if close := difflib.get_close_matches(first, known, n=1):
        return f"{found}; did you mean {close[0]}?"
    if takes_keys and first.startswith("--"):
        name = first[2:].replace("-", "_")
        return f"{found}; keys are written without dashes: {key_called(name) or name}={value if equals else '...'}"
    return f"{found} (see {parser.prog} --help)"


def build_parser() -> argparse.ArgumentParser:
    """The argument parser with all verbs."""
    parser = argparse.ArgumentParser(
        prog="honed",
        description="Supervised fine-tuning of language models: shows what will be learned, proves its shortcuts.",
        epilog="Start with `honed demo`. Each verb has its own help: `honed train --help`.",
    )
    parser.add_argument("--version", action="version", version=f"honed {__version__}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        name = verb.__name__.rsplit(".", 1)[-1]
        summary = (verb.__doc__ or "").splitlines()[0]
        below = verbs.add_parser(
            name,
            help=summary,
            description=verb.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(below)
        below.set_defaults(run=verb.run, parser=below)
    return parser


def _make_output_safe() -> None:
    """Discards output to a closed stream (`>&-`); escapes other characters if the output is ASCII (LC_ALL=C)."""
    nowhere = Path(os.devnull)
    sys.stdout = sys.stdout or nowhere.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or nowhere.open("w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="backslashreplace")


def _close_output() -> None:
    """Closes the streams: their buffers would fail once more, with a traceback, when Python exits."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.close()


if __name__ == "__main__":
    sys.exit(main())
