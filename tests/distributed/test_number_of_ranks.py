"""A run that goes on with another number of processes keeps the order of its data and the size of its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from test_engines import SAVES, same_weights

if TYPE_CHECKING:
    from conftest import Ended, Ranks

ROWS, STEPS, SAVED = 14, 8, 3  # two epochs of four steps, the last of each short; it stops in the midst of the first


def train(world: int, **more: Any) -> dict[str, Any]:
    """Four rows a step, whoever computes them."""
    return {"num_train_epochs": 2, "gradient_accumulation_steps": 4 // world, **more}


def rows_of(run: Ended, world: int, step: int) -> list[int]:
    """The rows of a step on all ranks; those of the ten worst steps are told, and there are fewer."""
    lines = [line for rank in range(world) for line in run.told(rank)["worst_steps"] if line["step"] == step]
    return sorted(row["row"] for line in lines for row in line["rows"])


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4)])
def test_it_ends_as_it_would_have(before: int, after: int, ranks: Ranks) -> None:
    """The same rows in each step, losses and weights to 1e-6."""
    first = ranks(f"ranks-{before}", world=before, rows=ROWS, train=train(before, **SAVES))
    checkpoint = first.out / f"checkpoint-{SAVED}"
    went_on = ranks(f"ranks-{before}-{after}", world=after, rows=ROWS, train=train(after), resume=str(checkpoint))
    assert f"ranks is {before} there, {after} here" in went_on.err(0)
    assert "per step" not in went_on.err(0)
    assert len(went_on.steps()) == len(first.steps()) == STEPS
    for line, other in zip(went_on.steps(), first.steps(), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert line["num_tokens"] == other["num_tokens"]
    for step in range(SAVED + 1, STEPS + 1):
        assert rows_of(went_on, after, step) == rows_of(first, before, step) != []
    same_weights(went_on, first)
