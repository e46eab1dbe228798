"""Detects data files that change during a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from honed.data.read.sources import files_of
from honed.recipe import DataRecipe

Stamps = Mapping[str, Mapping[str, int]]


def stamps(data: DataRecipe) -> Stamps:
    """Returns each data file's size in bytes and modification time in ns, except for Hub data and missing files."""
    found = {}
    for path in _files(data):
        try:
            stat = path.stat()
        except OSError:
            continue
        found[str(path)] = {"bytes": stat.st_size, "written_ns": stat.st_mtime_ns}
    return found


def changed(before: Stamps, data: DataRecipe) -> list[str]:
    """Returns the files that have changed or no longer exist."""
    now = stamps(data)
    return [name for name, stamp in before.items() if now.get(name) != stamp]


def _files(data: DataRecipe) -> Iterator[Path]:
    named: list[Any] = [source.get("files") for source in data.sources] if data.sources else [list(data.files)]
    for names in [*named, data.held_out]:
        yield from files_of(names) or ()
