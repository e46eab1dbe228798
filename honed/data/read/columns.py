"""Counts unused columns: unknown ones, and those of a format other than the trained one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from honed.data.ledger import Ledger
from honed.data.read.formats import FORMATS, ROW_KEYS, ReadOptions, formats_of
from honed.data.read.sources import SourcedRow

_Keys = tuple[Any, ...]
_MOST_SETS = 1024


class Columns:
    """Counts unused columns for the ledger: per set of keys, or per row if the keys fit several formats."""

    def __init__(self, reading: ReadOptions, format: str) -> None:
        self._reading, self._format = reading, format
        self._known: dict[_Keys, list[str]] = {}

    def count(self, rows: Sequence[SourcedRow], ledger: Ledger) -> None:
        """Adds the unused columns of these rows to the ledger."""
        sets_of_keys = Counter(tuple(row) for _, row in rows if isinstance(row, Mapping))
        unsure = {keys for keys in sets_of_keys if len(self._candidates(keys)) > 1}
        for keys, number in sets_of_keys.items():
            if keys not in unsure:
                self._count_unread(keys, self._candidates(keys)[:1], number, ledger)
        for _, row in rows if unsure else ():
            if isinstance(row, Mapping) and (keys := tuple(row)) in unsure:
                names = formats_of(row, self._reading)
                self._count_unread(keys, names[:1], 1, ledger)
                if len(names) > 1:
                    ledger.formats_beside[beside(names)] += 1

    def _candidates(self, keys: _Keys) -> list[str]:
        """The formats that these keys fit, whatever their values."""
        if keys not in self._known:
            if len(self._known) >= _MOST_SETS:
                self._known.clear()
            self._known[keys] = self._fitting(keys)
        return self._known[keys]

    def _fitting(self, keys: _Keys) -> list[str]:
        if self._format != "auto":
            return [self._format]
        names = {own: key for key, own in self._reading.columns.items() if key in ROW_KEYS}
        found = frozenset(names.get(key, key) for key in keys)
        fitting = [f.name for f in FORMATS.values() if f.name != "text" and f.matches(found)]
        return [*fitting, "text"] if self._reading.text_column in found else fitting

    def _count_unread(self, keys: _Keys, formats: Iterable[str], rows: int, ledger: Ledger) -> None:
        read = set().union(*map(self._read_by, formats)) or {*ROW_KEYS, self._reading.text_column}
        columns = {self._reading.columns.get(key, key) for key in read}
        for key in keys:
            if key not in columns:
                ledger.columns_unused[str(key)] += rows

    def _read_by(self, name: str) -> frozenset[str]:
        if name == "text":
            return frozenset({self._reading.text_column})
        return FORMATS[name].reads.union(*FORMATS[name].keys)


def beside(names: Sequence[str]) -> str:
    """The result of `formats_of` as written in the ledger: the format that is trained, and those that are not."""
    return f"{names[0]}, not {' or '.join(names[1:])}"
