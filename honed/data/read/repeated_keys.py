"""Finds JSON objects with a repeated key, which Python's `json` accepts silently: it keeps the last value.

Only a check looks for them, in a second pass over the files: a reader that looked at every object would be slower.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from honed.data.example import Source
from honed.data.read.files import TABLES, json_texts, kind_of


class _Repeating(dict[str, Any]):
    """An object in which `key` occurs more than once."""

    key = ""


def repeated_keys(files: Iterable[Path]) -> Iterator[tuple[Source, str]]:
    """Rows of JSON files that repeat a key, each with the place of the first such key.

    Anything that is not JSON is skipped: reading reports it.
    """
    for path in files:
        if kind_of(path) in TABLES:
            continue
        for number, text in json_texts(path):
            try:
                found = _DECODER.decode(text.decode())
            except (ValueError, RecursionError):
                continue
            rows = enumerate(found, start=1) if number is None and isinstance(found, list) else [(number or 1, found)]
            for row, value in rows:
                if place := _place(value):
                    yield Source(file=str(path), row=row), place


def _noticing(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeating, names = _Repeating(found), [name for name, _ in pairs]
    repeating.key = next(name for at, name in enumerate(names) if name in names[:at])
    return repeating


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_noticing)


def _place(value: Any) -> str:
    """A path such as `messages[1].content`; "" if no key is repeated."""
    if isinstance(value, _Repeating):
        return value.key
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inside:
        if isinstance(part, (dict, list)) and (place := _place(part)):
            step = f"[{name}]" if isinstance(value, list) else name
            return f"{step}{'' if place.startswith('[') else '.'}{place}"
    return ""
