"""Fills the last round of the ranks' micro-batches with rows in which nothing is trained.

accelerate repeats the first rows, which are then trained or counted twice. In training, empty rows take their place,
and batches omit them: the last micro-batches are short, and a rank without rows gets a batch in which nothing is
trained, because all ranks must take part in every backward pass. In evaluation the rows are followed by a row of weight
0, whose logits accelerate removes again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import Dataset, Sampler

from honed.data.batch.collate import Batch, FlatCollator, PaddedCollator
from honed.data.batch.table import PackedRow, PackedRows
from honed.train.rows.stream import StreamDataset

NOTHING = PackedRow(input_ids=np.zeros(0, dtype=np.int32), weights=np.zeros(0, dtype=np.float32), lengths=())


class FilledRows(Dataset[PackedRow]):
    """The rows, followed by `filling` at every further index.

    Args:
        rows: at least one.
        filling: a row in which nothing is trained.
        multiple_of: the length is rounded up to a multiple of this.

    Attributes:
        total_dataset_length: the number of real rows, under the name that accelerate reads.
    """

    def __init__(self, rows: PackedRows, filling: PackedRow = NOTHING, *, multiple_of: int = 1) -> None:
        self._rows, self._filling, self.total_dataset_length = rows, filling, len(rows)
        self._length = math.ceil(len(rows) / multiple_of) * multiple_of

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> PackedRow:
        return self._rows[index] if index < self.total_dataset_length else self._filling


class FilledOrder(Sampler[int]):
    """An order of rows, followed by indices beyond the last row up to a multiple of `multiple_of`."""

    def __init__(self, order: Any, multiple_of: int) -> None:
        self.order, self.multiple_of = order, multiple_of

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.multiple_of) * self.multiple_of

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from range(len(self.order), len(self))

    def set_epoch(self, epoch: int) -> None:
        """Called by the loader before each epoch."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledCollator:
    """Collates batches without `NOTHING`; one that would be empty holds the `untrained` row and counts no tokens."""

    collate: Callable[[list[Any]], Batch]
    untrained: PackedRow

    def __call__(self, rows: Sequence[PackedRow]) -> Batch:
        found = [row for row in rows if row.lengths]
        return self.collate(found) if found else {**self.collate([self.untrained]), "num_tokens": 0}


def untrained_row(rows: PackedRows) -> PackedRow:
    """Returns the first two tokens of the first row with weight 0, about the least that a model can compute."""
    ids = rows[0].input_ids[:2]
    return PackedRow(input_ids=ids, weights=np.zeros(len(ids), dtype=np.float32), lengths=(len(ids),))


def evenly_filled(rows: PackedRows, multiple_of: int) -> FilledRows:
    """Returns evaluation rows, at least one, filled up to a multiple of the rows in a batch over all ranks."""
    first = rows[0]
    return FilledRows(rows, replace(first, weights=np.zeros_like(first.weights)), multiple_of=multiple_of)


def can_fill(rows: Any, collate: Any) -> bool:
    """Whether rows and batches are honed's: a custom collator may not handle `NOTHING`. A stream has no last round."""
    ours = isinstance(rows, PackedRows) and isinstance(collate, (FlatCollator, PaddedCollator)) and len(rows) > 0
    return ours or isinstance(rows, StreamDataset)


def fill_up(loader: Any) -> None:
    """Makes a prepared loader over `FilledRows` fill its last round with `NOTHING` instead of repeated rows."""
    shard = loader.batch_sampler
    if isinstance(shard, BatchSamplerShard) and not shard.drop_last:
        per_round = shard.batch_size * (1 if shard.split_batches else shard.num_processes)
        loader.set_sampler(FilledOrder(shard.batch_sampler.sampler, per_round))
