"""Show what honed keeps on disk and how large it is; `honed cache clear` deletes it.

honed cache
honed cache clear [prepared | models | tokenizers]
"""

from __future__ import annotations

import argparse

KINDS = ("prepared", "models", "tokenizers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("action", nargs="?", choices=("show", "clear"), default="show")
    parser.add_argument(
        "kind",
        nargs="?",
        choices=KINDS,
        help="only these",
    )


def run(args: argparse.Namespace, command: str) -> int:
    """Prints one line per entry and the sum."""
    from honed.cache import cache_entries, cache_root, clear_cache

    clearing = args.action == "clear"
    entries = clear_cache(kind=args.kind) if clearing else cache_entries()
    shown = [entry for entry in entries if args.kind in (None, entry.kind)]
    for entry in shown:
        print(f"{entry.size / 1e6:>10,.1f} MB  {entry.kind:10} {entry.path.name}")
    what = "deleted from" if clearing else "in"
    print(f"{sum(entry.size for entry in shown) / 1e6:>10,.1f} MB  {what} {cache_root()}")
    return 0
