"""Access to prepared rows by column name, like a row of `datasets`. Columns are built on access."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from honed.data.read.formats import IGNORE_INDEX

COLUMNS = ("input_ids", "labels", "position_ids", "seq_lengths")

Rows = slice | Sequence[int]


class RowColumns(Mapping[str, list[int]]):
    """A row as a mapping with the columns of TRL's packed rows; the values are plain lists.

    input_ids     the model's input
    labels        the same ids, -100 for untrained tokens; not shifted
    position_ids  counted from 0 in each document
    seq_lengths   tokens of each document
    """

    __slots__ = ()

    input_ids: np.ndarray
    weights: np.ndarray
    lengths: tuple[int, ...]

    def __getitem__(self, column: str) -> list[int]:
        if column == "input_ids":
            values = self.input_ids
        elif column == "labels":
            values = np.where(self.weights > 0, self.input_ids, IGNORE_INDEX)
        elif column == "position_ids":
            values = np.concatenate([np.arange(length) for length in self.lengths])
        elif column == "seq_lengths":
            return list(self.lengths)
        else:
            raise KeyError(f"{column!r}: a prepared row has {', '.join(COLUMNS)}")
        as_list: list[int] = values.tolist()
        return as_list

    def __iter__(self) -> Iterator[str]:
        return iter(COLUMNS)

    def __len__(self) -> int:
        return len(COLUMNS)


class ByColumn:
    """Column access over several rows; a base class of map-style datasets, which implement access to one row."""

    column_names: Sequence[str] = COLUMNS

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError

    def columns(self, index: str | Rows) -> Any:
        """Returns one column of all rows, by name; for a slice or row indices, all columns: {name: [row's, ...]}.

        Raises:
            KeyError: there is no such column.
        """
        if isinstance(index, str):
            if index not in self.column_names:
                raise KeyError(f"{index!r}: prepared rows have {', '.join(self.column_names)}")
            return [self[number][index] for number in range(len(self))]
        numbers = range(len(self))[index] if isinstance(index, slice) else index
        rows = [self[int(number)] for number in numbers]
        return {name: [row[name] for row in rows] for name in self.column_names}
