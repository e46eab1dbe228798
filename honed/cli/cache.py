"""Show what honed keeps on disk, newest first; `honed cache clear` deletes it.

  honed cache
  honed cache clear
  honed cache clear prepared              (prepared, models or tokenizers)
  honed cache clear rows.jsonl            (entries made from this file or model, or whose folder name starts so)

Deleting costs only time: whatever is needed again is rebuilt.
"""

from __future__ import annotations

import argparse
import re
import time
from typing import TYPE_CHECKING

from honed.errors import RunError
from honed.quantities import age_text, counted

if TYPE_CHECKING:
    from honed.cache import CacheEntry

KINDS = ("prepared", "models", "tokenizers")
SHOWN = 12  # characters of a folder named by a hash
HASH = re.compile(r"[0-9a-f]{32,}")
UNKNOWN = "(made before names were kept)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("action", nargs="?", choices=("show", "clear"), default="show")
    parser.add_argument("name", nargs="?", metavar="KIND | NAME", help=f"only these: {', '.join(KINDS)}, or a name")


def run(args: argparse.Namespace, command: str) -> int:
    """Prints one line per entry and the total."""
    from honed.cache import cache_entries, cache_root, clear_cache

    kind = args.name if args.name in KINDS else None
    named = None if kind else args.name
    clearing = args.action == "clear"
    entries = clear_cache(kind=kind, named=named) if clearing else cache_entries(kind=kind, named=named)
    if named and not entries:
        raise RunError(f"Nothing in {cache_root()} is called {named}.", fix="`honed cache` shows what is there")
    now = time.time()
    for entry in sorted(entries, key=lambda entry: -entry.made):
        print(line(entry, now))
    what = "deleted from" if clearing else "in"
    total = sum(entry.size for entry in entries) / 1e6
    print(f"{total:>10,.1f} MB  {counted(len(entries), 'entry', 'entries')} {what} {cache_root()}")
    return 0


def line(entry: CacheEntry, now: float) -> str:
    """Size, kind, age, the start of the folder's name, and the description."""
    name = entry.path.name
    about = entry.about or ("(being made)" if name.startswith(".work") else UNKNOWN)
    name = name[:SHOWN] if HASH.fullmatch(name) else name
    return f"{entry.size / 1e6:>10,.1f} MB  {entry.kind:10}  {age_text(now - entry.made):>8}  {name:{SHOWN}}  {about}"
