"""Trainable rows in columns: few arrays for many rows, cheap to store and to send to another process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from honed.data.encode.render import Rendered
from honed.data.example import Source
from honed.data.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRow:
    """A trainable row: its documents after the length policy, and what the policy did to it."""

    source: Source
    views: list[Rendered]
    cut: tuple[str, str] | None = None

    def count(self, ledger: Ledger) -> None:
        """Adds this row to the ledger as trained once."""
        ledger.rows_trained += 1
        if self.cut is not None:
            ledger.cut(self.source, *self.cut)
        if self.views[0].views > 1:
            ledger.conversations_split_into_views += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRows:
    """Many trainable rows.

        rows       |   first   | second |     documents (2, 1)
        documents  | a a | b b |  c c c |     lengths (2, 2, 3)

    Attributes:
        input_ids: int32, shape (T,), all documents concatenated.
        weights: float32, shape (T,).
        lengths: int64, shape (D,), tokens per document.
        documents: int64, shape (rows,), documents per row.
        stops: int32, shape (turns,), the last id of each trained turn.
        turns: int64, shape (D,), trained turns per document.
        divided: bool, shape (rows,), whether the conversation was split into several views.
        file: int64, shape (rows,), index in `names` of the row's source.
        number: int64, shape (rows,), the row's number in its source.
        names: names of sources.
        cuts: row -> reason and detail of what the length policy did to it.
    """

    input_ids: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray
    documents: np.ndarray
    stops: np.ndarray
    turns: np.ndarray
    divided: np.ndarray
    file: np.ndarray
    number: np.ndarray
    names: tuple[str, ...]
    cuts: dict[int, tuple[str, str]]

    def __len__(self) -> int:
        return len(self.documents)

    @classmethod
    def of(cls, rows: Sequence[KeptRow]) -> KeptRows:
        """Builds columns from these rows, in order."""
        views = [view for row in rows for view in row.views]
        names = {name: n for n, name in enumerate(dict.fromkeys(row.source.file for row in rows))}
        return cls(
            input_ids=_end_to_end((view.input_ids for view in views), np.int32),
            weights=_end_to_end((view.weights for view in views), np.float32),
            lengths=_whole(len(view.input_ids) for view in views),
            documents=_whole(len(row.views) for row in rows),
            stops=np.fromiter((turn.stop for view in views for turn in view.turns), dtype=np.int32),
            turns=_whole(len(view.turns) for view in views),
            divided=np.fromiter((row.views[0].views > 1 for row in rows), dtype=bool),
            file=_whole(names[row.source.file] for row in rows),
            number=_whole(row.source.row for row in rows),
            names=tuple(names),
            cuts={n: row.cut for n, row in enumerate(rows) if row.cut is not None},
        )

    @classmethod
    def joined(cls, parts: Iterable[KeptRows]) -> KeptRows:
        """Concatenates the rows of all parts."""
        parts = [part for part in parts if len(part)]
        names = {name: n for n, name in enumerate(dict.fromkeys(name for part in parts for name in part.names))}
        cuts: dict[int, tuple[str, str]] = {}
        before = 0
        for part in parts:
            cuts |= {before + n: cut for n, cut in part.cuts.items()}
            before += len(part)
        renumbered = (_whole(names[name] for name in part.names)[part.file] for part in parts)
        columns = {name: _end_to_end((getattr(part, name) for part in parts), kind) for name, kind in _ALIKE.items()}
        return cls(**columns, file=_end_to_end(renumbered, np.int64), names=tuple(names), cuts=cuts)

    def source(self, row: int) -> Source:
        """The source of a row."""
        return Source(file=self.names[int(self.file[row])], row=int(self.number[row]))

    def count(self, ledger: Ledger) -> None:
        """Adds all rows to the ledger, each as trained once."""
        ledger.rows_trained += len(self)
        ledger.conversations_split_into_views += int(np.count_nonzero(self.divided))
        for row, cut in self.cuts.items():
            ledger.cut(self.source(row), *cut)

    def repeated(self, times: np.ndarray) -> KeptRows:
        """Repeats each row `times` times, int64 (rows,); 0 leaves it out."""
        if (times == 1).all():
            return self
        return self.chosen(np.repeat(np.arange(len(self)), times))

    def chosen(self, rows: np.ndarray) -> KeptRows:
        """The rows with these indices, int64, in this order."""
        of_rows = _spread(rows, self.documents)
        tokens = _spread(of_rows, self.lengths)
        return replace(
            self,
            input_ids=self.input_ids[tokens],
            weights=self.weights[tokens],
            lengths=self.lengths[of_rows],
            documents=self.documents[rows],
            stops=self.stops[_spread(of_rows, self.turns)],
            turns=self.turns[of_rows],
            divided=self.divided[rows],
            file=self.file[rows],
            number=self.number[rows],
            cuts={n: self.cuts[row] for n, row in enumerate(rows.tolist()) if row in self.cuts} if self.cuts else {},
        )


_ALIKE = {  # columns that are joined by concatenation
    "input_ids": np.int32, "weights": np.float32, "lengths": np.int64, "documents": np.int64, "stops": np.int32,
    "turns": np.int64, "divided": np.bool_, "number": np.int64,
}  # fmt: skip


def _spread(chosen: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Indices of the parts of the chosen wholes, where whole n has `lengths[n]` parts, numbered consecutively."""
    own = lengths[chosen]
    starts = np.cumsum(lengths)[chosen] - own
    return np.repeat(starts - (np.cumsum(own) - own), own) + np.arange(own.sum())


def _whole(numbers: Iterable[int]) -> np.ndarray:
    return np.fromiter(numbers, dtype=np.int64)


def _end_to_end(arrays: Iterable[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=dtype), *arrays], dtype=dtype)
