"""Prepared rows read as a row of `datasets` is read: by the names of columns. Built when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from honed.data.read.formats import IGNORE_INDEX

COLUMNS = ("input_ids", "labels", "position_ids", "seq_lengths")

Rows = slice | Sequence[int]


class RowColumns(Mapping[str, list[int]]):
    """A row as a mapping, with the columns that TRL's packed rows have; the values are plain lists.

    input_ids     what the model reads
    labels        the same ids, -100 where nothing is trained; position t says whether t itself is trained
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
    """What several rows have in a column; a base of map-style data sets, which read one row themselves."""

    column_names: Sequence[str] = COLUMNS

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError

    def columns(self, index: str | Rows) -> Any:
        """A column of all rows by its name; of a slice or of row numbers, every column: {name: [row's, ...]}.

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
