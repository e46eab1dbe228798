"""Prepared documents in three flat arrays, and the rows that training reads from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from honed.data.batch.row_columns import ByColumn, RowColumns, Rows
from honed.data.encode.render import Rendered


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow(RowColumns):
    """One or more documents in a row; `row["labels"]` and so on as in `RowColumns`.

        input_ids  | a a a a | b b | c c c |      lengths (4, 2, 3)
        weights    | 0 0 1 1 | 0 1 | 0 0 1 |      0 for the first token of each document

    Attributes:
        input_ids: int32, shape (T,), T the sum of the lengths.
        weights: float32, shape (T,).
        lengths: tokens per document.
    """

    input_ids: np.ndarray
    weights: np.ndarray
    lengths: tuple[int, ...]


class TokenTable:
    """Documents of different lengths in flat arrays: one slice per document, no Python object per token.

    Attributes:
        input_ids: int32, shape (T,), all documents concatenated.
        weights: float32, shape (T,).
        starts: int64, shape (documents + 1,); document i is [starts[i], starts[i + 1]).
    """

    @classmethod
    def of(cls, input_ids: np.ndarray, weights: np.ndarray, starts: np.ndarray) -> TokenTable:
        """Creates a table from existing arrays."""
        table = cls([])
        table.input_ids, table.weights, table.starts = input_ids, weights, starts
        return table

    def __init__(self, documents: Sequence[Rendered]) -> None:
        self.input_ids = _joined([d.input_ids for d in documents], np.int32)
        self.weights = _joined([d.weights for d in documents], np.float32)
        self.starts = np.cumsum([0, *(len(d) for d in documents)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per document, int64, shape (documents,)."""
        return np.diff(self.starts)

    def begin_twice_with(self, token: int | None) -> int:
        """Returns the number of documents that begin with this id twice."""
        if token is None:
            return 0
        first = self.starts[:-1][self.lengths > 1]
        return int(np.count_nonzero((self.input_ids[first] == token) & (self.input_ids[first + 1] == token)))

    def recut(self, starts: np.ndarray) -> TokenTable:
        """Divides the tokens into other documents; the first token of each is not predicted, so its weight is 0."""
        weights = self.weights.copy()
        weights[starts[:-1]] = 0.0
        return TokenTable.of(self.input_ids, weights, starts)

    def row(self, documents: Sequence[int]) -> PackedRow:
        """Returns a row with these documents, concatenated."""
        spans = [slice(self.starts[d], self.starts[d + 1]) for d in documents]
        return PackedRow(
            input_ids=_joined([self.input_ids[s] for s in spans], np.int32),
            weights=_joined([self.weights[s] for s in spans], np.float32),
            lengths=tuple(int(s.stop - s.start) for s in spans),
        )


class PackedRows(ByColumn):
    """A map-style dataset of `PackedRow` for torch's DataLoader; slices and column names work as in `datasets`.

    Args:
        rows: document indices of each row (see `pack.py`).
    """

    def __init__(self, table: TokenTable, rows: Sequence[Sequence[int]]) -> None:
        self.table = table
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> PackedRow: ...

    @overload
    def __getitem__(self, index: str | Rows) -> Any: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (str, slice, list, range)):
            return self.columns(index)
        return self.table.row(self.rows[index])


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
