"""Optimizer steps with about the same number of tokens: their rows, and how ranks and micro-batches share them.

A step's rows depend on the lengths, `tokens_per_step`, the seed and the epoch, not on the number of ranks. They are
balanced by longest-processing-time-first: longest row first, each to the share with the fewest tokens so far (Graham,
Bounds on multiprocessing timing anomalies, 1969).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from torch.utils.data import Dataset, Sampler

from honed.data.batch.collate import Batch, FlatCollator
from honed.data.batch.table import PackedRows
from honed.errors import RecipeError
from honed.train.options.config import SFTConfig
from honed.train.rows.filling import untrained_row

Lengths = Sequence[int] | np.ndarray


def step_bounds(lengths: Lengths, tokens_per_step: int) -> np.ndarray:
    """Divides an epoch into steps with nearly the same number of tokens.

    The number of steps is the epoch's tokens / `tokens_per_step`, rounded, whatever the order of the rows. Each step
    has its share of the tokens, give or take one row; there is no short step at the end.

    Args:
        lengths: tokens of each row, at least 1, in the order of the epoch.
        tokens_per_step: at least 1.

    Returns:
        int64 (steps + 1,), increasing from 0 to the number of rows: step k has the rows bounds[k] to bounds[k + 1].
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    total, rows = int(lengths.sum()), len(lengths)
    steps = min(max(1, round(total / tokens_per_step)), rows)
    middles = np.cumsum(lengths) - lengths / 2
    numbers = np.arange(steps + 1)
    bounds = np.searchsorted(middles, numbers * (total / steps))
    bounds[0], bounds[-1] = 0, rows
    bounds = np.maximum.accumulate(bounds - numbers) + numbers  # a step next to a very long row has at least one row
    return np.minimum(bounds, rows - steps + numbers)


def spread(lengths: Lengths, shares: int) -> list[list[int]]:
    """Divides the positions in `lengths` into shares with nearly equal sums; ascending in each share."""
    found: list[list[int]] = [[] for _ in range(shares)]
    loads = [(0, share) for share in range(shares)]
    for position in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        load, share = loads[0]
        found[share].append(position)
        heapq.heapreplace(loads, (load + int(lengths[position]), share))
    return [sorted(share) for share in found]


def micro_batches_of(lengths: Lengths, *, ranks: int, budget: int) -> list[list[list[int]]]:
    """Divides a step's rows among the ranks and into micro-batches.

    Args:
        lengths: tokens of each row of the step.
        budget: maximum tokens per micro-batch, unless a single row is longer.

    Returns:
        rank -> micro-batch -> positions in `lengths`. All ranks have the same number of micro-batches, as few as
        possible; some may be empty.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    limit = max(budget, int(lengths.max()))
    shares = [np.array(share, dtype=np.int64) for share in spread(lengths, ranks)]
    count = max(-(-int(lengths[share].sum()) // limit) for share in shares)
    while True:
        cut = [[share[part] for part in spread(lengths[share], count)] for share in shares]
        if all(lengths[part].sum() <= limit for parts in cut for part in parts):
            return [[part.tolist() for part in parts] for parts in cut]
        count += 1


class TokenBatches(Sampler[list[list[int]]]):
    """Yields this rank's part of each step of an epoch, as the row indices of its micro-batches.

    Args:
        tokens_per_step: see `step_bounds`.
        budget: see `micro_batches_of`.
        seed: seed of the rows' order; None keeps their order.
    """

    def __init__(
        self, lengths: Lengths, *, tokens_per_step: int, budget: int, rank: int, world: int, seed: int | None
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.tokens_per_step, self.budget, self.rank, self.world = tokens_per_step, budget, rank, world
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(step_bounds(self.lengths, self.tokens_per_step)) - 1

    def __iter__(self) -> Iterator[list[list[int]]]:
        order = np.arange(len(self.lengths))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        bounds = step_bounds(self.lengths[order], self.tokens_per_step)
        for start, end in pairwise(bounds):
            rows = order[start:end]
            shares = micro_batches_of(self.lengths[rows], ranks=self.world, budget=self.budget)
            yield [rows[part].tolist() for part in shares[self.rank]]

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self.epoch = epoch


class _MicroBatches(Dataset[Batch]):
    """Maps row indices to their micro-batch; without indices, to one in which nothing is trained."""

    def __init__(self, rows: PackedRows, collate: Callable[[list[Any]], Batch]) -> None:
        self._rows, self._collate = rows, collate

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, numbers: list[int]) -> Batch:
        return self._collate([self._rows[number] for number in numbers] or [untrained_row(self._rows)])


def micro_batches(inputs: Mapping[str, Any]) -> list[Batch]:
    """Returns the micro-batches in a loader's output: one, unless `tokens_per_step` is set."""
    found: list[Batch] = inputs.get("micro_batches", [inputs])
    return found


def check(args: SFTConfig, collate: Any) -> None:
    """Refuses options with which steps cannot be chosen by their tokens.

    Raises:
        RecipeError: `tokens_per_step` is invalid, or batches are not flat.
    """
    if args.tokens_per_step is None:
        return
    if args.tokens_per_step < 1:
        raise RecipeError(f"tokens_per_step is {args.tokens_per_step}.", fix="set 1 or more, or leave it out")
    if not isinstance(collate, FlatCollator):
        raise RecipeError(
            "tokens_per_step needs honed's flat batches, but this model or collator uses others.",
            fix="leave it out, and set per_device_train_batch_size and gradient_accumulation_steps",
        )


def loader_of(rows: PackedRows, collate: Callable[[list[Any]], Batch], args: SFTConfig, *, size: int) -> Any:
    """Returns this rank's loader, which yields a whole step at a time: {"micro_batches": [...]}.

    Args:
        size: `per_device_train_batch_size`; a micro-batch has at most the tokens of this many rows of `max_length`.
    """
    lengths = row_lengths(rows)
    workers = args.dataloader_num_workers
    sampler = TokenBatches(
        lengths,
        tokens_per_step=int(args.tokens_per_step or 1),
        budget=size * (args.max_length or int(lengths.max())),
        rank=args.data_parallel_rank,
        world=args.data_parallel_size,
        seed=None if args.train_sampling_strategy == "sequential" else args.order_seed,
    )
    return DataLoaderShard(
        _MicroBatches(rows, collate),
        device=args.device,
        batch_sampler=sampler,
        collate_fn=_step_of,
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory,
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        generator=torch.Generator(),  # else it draws from dropout's generator
        _non_blocking=True,
    )


def row_lengths(rows: PackedRows) -> np.ndarray:
    """Returns the number of tokens in each row, int64."""
    documents = np.fromiter(chain.from_iterable(rows.rows), dtype=np.int64)
    starts = np.cumsum([0, *(len(row) for row in rows.rows)])[:-1]
    return np.add.reduceat(rows.table.lengths[documents], starts)


def _step_of(batches: list[Batch]) -> dict[str, list[Batch]]:
    return {"micro_batches": batches}
