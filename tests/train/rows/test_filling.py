"""The ranks' last round is filled up with nothing: each row once, in the order of one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler

from honed.data.batch.collate import FlatCollator, PaddedCollator
from honed.data.batch.pack import pack_best_fit
from honed.data.batch.table import PackedRows, TokenTable
from honed.train.rows.filling import FilledCollator, FilledOrder, FilledRows, fill_up, untrained_row


def make_rows(count: int) -> PackedRows:
    """Row n is n + 3 tokens that all say n."""
    lengths = np.arange(count) + 3
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    ids = np.repeat(np.arange(count), lengths).astype(np.int32)
    weights = np.ones(len(ids), dtype=np.float32)
    weights[starts[:-1]] = 0.0
    return PackedRows(TokenTable.of(ids, weights, starts), [[n] for n in range(count)])


def loader_of(rows: PackedRows, size: int, world: int, rank: int, collate: Any, **further: Any) -> Any:
    """As accelerate prepares one."""
    order = RandomSampler(range(len(rows)), generator=torch.Generator().manual_seed(7))
    shard = BatchSamplerShard(BatchSampler(order, size, drop_last=False), world, rank, **further)
    filled = FilledCollator(collate=collate, untrained=untrained_row(rows))
    loader = DataLoaderShard(FilledRows(rows), batch_sampler=shard, collate_fn=filled)
    fill_up(loader)
    return loader


def in_turn(batches: list[list[Any]]) -> list[Any]:
    """By round, and in a round by rank."""
    return [batch for round_ in zip(*batches, strict=True) for batch in round_]


@given(count=st.integers(1, 30), size=st.integers(1, 4), world=st.integers(2, 5), done=st.integers(0, 2))
def test_each_row_once_in_the_order_of_one_process(count: int, size: int, world: int, done: int) -> None:
    """`zip(strict=True)`: all ranks have as many micro-batches; also behind those that a resumed run skips."""
    rows, collate = make_rows(count), FlatCollator()
    loaders = [loader_of(rows, size, world, rank, collate) for rank in range(world)]
    assert all(len(loader.dataset) == count for loader in loaders)
    done = min(done, len(loaders[0]) - 1)
    order = list(RandomSampler(range(count), generator=torch.Generator().manual_seed(7)))
    whole = [collate([rows[n] for n in order[at : at + size]]) for at in range(0, count, size)]
    found = in_turn([list(skip_first_batches(loader, done)) for loader in loaders])
    trained = [batch["input_ids"].tolist() for batch in found if batch["num_tokens"]]
    assert trained == [batch["input_ids"].tolist() for batch in whole[done * world :]]
    for batch in found:
        assert batch["num_tokens"] or (not batch["loss_weights"].any() and (batch["labels"] == -100).all())


def test_padded_batches_have_no_row_that_is_nothing() -> None:
    collate = PaddedCollator(pad_token_id=0)
    first, second = (list(loader_of(make_rows(3), 2, 2, rank, collate)) for rank in range(2))
    assert [len(batch["input_ids"]) for batch in first + second] == [2, 1]
    first, second = (list(loader_of(make_rows(5), 2, 2, rank, collate)) for rank in range(2))
    assert [batch["num_tokens"] > 0 for batch in second] == [True, False]
    assert second[1]["attention_mask"].all() and second[1]["num_targets"] == 0


def test_batches_that_are_split_among_ranks() -> None:
    found = [list(loader_of(make_rows(5), 4, 2, rank, FlatCollator(), split_batches=True)) for rank in range(2)]
    ids = [n for batch in in_turn(found) if batch["num_tokens"] for n in batch["input_ids"][0].tolist()]
    assert sorted(set(ids)) == list(range(5)) and len(ids) == sum(range(3, 8))


@pytest.mark.parametrize("drop_last", [True, False])
def test_what_is_dropped_stays_dropped(drop_last: bool) -> None:
    shard = BatchSamplerShard(BatchSampler(range(5), 2, drop_last=drop_last), 2, 0)
    loader = DataLoaderShard(FilledRows(make_rows(5)), batch_sampler=shard, collate_fn=FlatCollator())
    fill_up(loader)
    assert list(loader.batch_sampler) == ([[0, 1]] if drop_last else [[0, 1], [4, 5]])


def test_packed_rows_give_all_ranks_the_same_work() -> None:
    """8 ranks with 4 packed rows each, lengths as conversations have: in no step has a rank 2% more tokens than another
    has on average, and over the epoch none has 0.2% more."""
    draw, ranks, size, capacity = np.random.default_rng(0), 8, 4, 2048
    lengths = np.clip(np.exp(draw.normal(np.log(128), 0.6, size=50_000)), 8, capacity).astype(np.int64)
    packed = pack_best_fit(lengths, capacity)
    tokens = np.array([lengths[row].sum() for row in packed])
    order = FilledOrder(RandomSampler(packed, generator=torch.Generator().manual_seed(0)), size * ranks)
    batches = list(BatchSampler(order, size, drop_last=False))
    full = len(packed) // (size * ranks)  # steps in which nothing is filled up
    dealt = [list(BatchSamplerShard(batches, ranks, rank)) for rank in range(ranks)]
    tokens_RS = np.array([[tokens[batch].sum() for batch in of_rank[:full]] for of_rank in dealt])
    assert (tokens_RS.max(axis=0) / tokens_RS.mean(axis=0)).max() < 1.02
    assert tokens_RS.sum(axis=1).max() / tokens_RS.sum(axis=1).mean() < 1.002
