"""Training rows that do not fill the last round of the ranks' micro-batches, filled up with nothing.

accelerate fills a last round up with the epoch's first rows, which are trained twice then. Here what is missing is a
row without tokens, which no batch holds: the last micro-batches are short, and a rank that would have none gets one in
which nothing is trained, for all ranks must take part in every backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import Dataset, Sampler

from honed.data.batch.collate import Batch
from honed.data.batch.table import PackedRow, PackedRows

NOTHING = PackedRow(input_ids=np.zeros(0, dtype=np.int32), weights=np.zeros(0, dtype=np.float32), lengths=())


class FilledRows(Dataset[PackedRow]):
    """The rows; every number behind their last one is `NOTHING`."""

    def __init__(self, rows: PackedRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PackedRow:
        return self._rows[index] if index < len(self._rows) else NOTHING


class FilledOrder(Sampler[int]):
    """An order of rows, followed by numbers behind the last row until `multiple_of` divides how many there are."""

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
    """Batches without `NOTHING`; of nothing else, one in which nothing is trained and no token counts.

    Attributes:
        untrained: what stands in a batch that would be empty.
    """

    collate: Callable[[list[Any]], Batch]
    untrained: PackedRow

    def __call__(self, rows: Sequence[PackedRow]) -> Batch:
        found = [row for row in rows if row.lengths]
        return self.collate(found) if found else {**self.collate([self.untrained]), "num_tokens": 0}


def untrained_row(rows: PackedRows) -> PackedRow:
    """The beginning of the first row, without weight: as little as a model computes."""
    ids = rows[0].input_ids[:2]
    return PackedRow(input_ids=ids, weights=np.zeros(len(ids), dtype=np.float32), lengths=(len(ids),))


def fill_up(loader: Any) -> None:
    """Has the ranks' last round of a prepared loader over `FilledRows` hold nothing instead of rows once more."""
    shard = loader.batch_sampler
    if isinstance(shard, BatchSamplerShard) and not shard.drop_last:
        per_round = shard.batch_size * (1 if shard.split_batches else shard.num_processes)
        loader.set_sampler(FilledOrder(shard.batch_sampler.sampler, per_round))
