"""Steps chosen by their tokens: each row once an epoch, the same on any number of ranks, in even shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.errors import RecipeError
from honed.train.rows.token_batches import TokenBatches, micro_batches_of, row_lengths, step_bounds
from honed.train.trainer.trainer import SFTTrainer

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


def epoch_of(lengths: list[int], *, world: int = 1, tokens: int = 200, budget: int = 100, epoch: int = 0) -> list[Any]:
    """rank -> step -> micro-batch -> row numbers."""
    made = []
    for rank in range(world):
        sampler = TokenBatches(lengths, tokens_per_step=tokens, budget=budget, rank=rank, world=world, seed=3)
        sampler.set_epoch(epoch)
        made.append(list(sampler))
        assert len(made[-1]) == len(sampler)
    return made


def rows_of_steps(ranks: list[Any]) -> list[list[int]]:
    return [
        sorted(row for rank in ranks for part in rank[step] for row in part) for step in range(len(ranks[0]))
    ]  # fmt: skip


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 1000), st.integers(1, 400), st.integers(0, 2))
def test_each_row_is_trained_once_in_the_same_step_on_any_number_of_ranks(
    lengths: list[int], world: int, tokens: int, budget: int, epoch: int
) -> None:
    ranks = epoch_of(lengths, world=world, tokens=tokens, budget=budget, epoch=epoch)
    steps = rows_of_steps(ranks)
    assert sorted(row for step in steps for row in step) == list(range(len(lengths)))
    assert all(steps)
    assert steps == rows_of_steps(epoch_of(lengths, tokens=tokens, budget=7, epoch=epoch))
    for number in range(len(steps)):
        parts = [[sum(lengths[row] for row in part) for part in rank[number]] for rank in ranks]
        longest = max(lengths[row] for row in steps[number])
        assert len({len(shares) for shares in parts}) == 1  # as sharded models need, whose ranks wait at each layer
        assert max(map(max, parts)) <= max(budget, longest)
        assert max(map(sum, parts)) - min(map(sum, parts)) <= longest


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 1000))
def test_steps_have_about_as_many_tokens(lengths: list[int], tokens: int) -> None:
    bounds = step_bounds(lengths, tokens)
    steps, total = len(bounds) - 1, sum(lengths)
    assert bounds[0] == 0 and bounds[-1] == len(lengths) and (np.diff(bounds) > 0).all()
    assert steps == min(max(1, round(total / tokens)), len(lengths))
    if max(lengths) <= total / steps:  # else a single row is more than a step
        assert all(abs(sum(lengths[a:b]) - total / steps) <= max(lengths) for a, b in zip(bounds, bounds[1:]))  # noqa: B905, RUF007


def test_shares_are_nearly_even() -> None:
    """Real lengths have many short rows, which fill the gaps: far better than the bound that holds for any."""
    lengths = np.random.default_rng(0).lognormal(5, 1, 400).astype(int) + 1
    shares = [sum(lengths[part].sum() for part in parts) for parts in micro_batches_of(lengths, ranks=4, budget=8192)]
    assert max(shares) / min(shares) < 1.001


def test_the_order_follows_from_seed_and_epoch() -> None:
    lengths = list(range(1, 50))
    assert epoch_of(lengths) == epoch_of(lengths)
    assert epoch_of(lengths) != epoch_of(lengths, epoch=1)


def reference(trainer: SFTTrainer, rows: list[int]) -> torch.Tensor:
    """The loss of a step from plain logits, a row at a time."""
    loss, weight = torch.zeros((), dtype=torch.float64), 0.0
    for number in rows:
        row = trainer.train_dataset[number]
        ids, weights = torch.from_numpy(row.input_ids).long(), torch.from_numpy(row.weights)[1:]
        logits = trainer.model(input_ids=ids[None]).logits[0, :-1]
        loss = loss + (F.cross_entropy(logits, ids[1:], reduction="none") * weights).sum()
        weight += float(weights.sum())
    return loss / weight


def test_the_trainer_steps_as_plain_arithmetic_does(make: Callable[..., SFTTrainer], chat_rows: Any) -> None:
    """Two epochs of plain gradient descent in float64, whatever the micro-batches hold."""
    trainers = [
        make(chat_rows, tokens_per_step=120, num_train_epochs=2, max_length=64, per_device_train_batch_size=size)
        for size in (1, 8)
    ]
    plain = make(chat_rows, max_length=64)
    lengths, seed = row_lengths(plain.train_dataset), plain.args.seed
    losses = []
    for epoch in range(2):
        sampler = TokenBatches(lengths, tokens_per_step=120, budget=10**9, rank=0, world=1, seed=seed)
        sampler.set_epoch(epoch)
        for (rows,) in sampler:
            loss = reference(plain, rows)
            losses.append(float(loss.detach()))
            plain.model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for weight in plain.model.parameters():
                    weight.sub_(0.05 * weight.grad)
    for trainer in trainers:
        trainer.train()
        logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        assert logged == pytest.approx(losses, rel=1e-6)  # transformers adds them in float32
        for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)
        assert trainer.metrics.num_tokens == 2 * lengths.sum()
    parts = {len(window) for trainer in trainers for window in trainer._window}
    assert max(parts) > 1 and min(parts) == 1


def test_rows_of_a_step_are_known(make: Callable[..., SFTTrainer], chat_rows: Any) -> None:
    job = {"max_length": 64, "per_device_train_batch_size": 1, "num_train_epochs": 1}
    trainer = make(chat_rows, tokens_per_step=120, **job)
    trainer.train()
    steps = [trainer.rows_of(step + 1) for step in range(trainer.state.max_steps)]
    assert sorted(row for step in steps for batch in step for row in batch) == list(range(12))


def test_ranks_without_rows_take_part(make: Callable[..., SFTTrainer], chat_rows: Any) -> None:
    """A step of one row on three ranks: two of them compute a micro-batch whose loss and gradient are 0."""
    from honed.train.rows.token_batches import _MicroBatches

    trainer = make(chat_rows, max_length=64)
    batch = _MicroBatches(trainer.train_dataset, trainer.data_collator)[[]]
    total = trainer._get_num_items_in_batch([{"micro_batches": [batch]}], torch.device("cpu"))
    with trainer._seams_open():
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=total)
    loss.backward()
    assert float(total) == 0.0 and float(loss.detach()) == 0.0
    assert not any(p.grad is not None and bool(p.grad.any()) for p in trainer.model.parameters())


def test_what_cannot_be_chosen_by_tokens_is_refused(
    make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any], chat_rows: Any
) -> None:
    with pytest.raises(RecipeError, match="tokens_per_step is 0"):
        make(chat_rows, tokens_per_step=0)
    with pytest.raises(RecipeError, match="flat batches"):
        make(chat_rows, tokens_per_step=100, model=tiny_model(attn_implementation="eager"))
    with pytest.raises(RecipeError, match="flat batches"):  # a loss of one's own gets padded ones
        make(chat_rows, tokens_per_step=100, trainer={"compute_loss_func": lambda *_, **__: None})
