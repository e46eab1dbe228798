"""A run that goes on with another number of processes keeps the order of its data and the size of its steps."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from test_engines import SAVES, same_weights

if TYPE_CHECKING:
    from pathlib import Path

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


def left_by(first: Ended, folder: str) -> Path:
    """A run's folder as it is when the machine goes away behind step `SAVED`."""
    out = first.out.parent / folder
    for step in range(1, SAVED + 1):
        shutil.copytree(first.out / f"checkpoint-{step}", out / f"checkpoint-{step}")
    return out


def test_it_goes_on_unasked_where_the_steps_keep_their_rows(ranks: Ranks) -> None:
    """And its rotation knows the checkpoints of before as its own."""
    first = ranks("unasked-2", world=2, rows=ROWS, train=train(2, **SAVES))
    out = left_by(first, "unasked-1")
    job = train(1, **SAVES, save_total_limit=2)
    went_on = ranks("unasked-1", world=1, rows=ROWS, train=job, resume="auto", out=out)
    assert went_on.statuses == [0], went_on.err(0)
    assert f"checkpoint-{SAVED} was written by 2 processes, and now there are 1: each step has" in went_on.err(0)
    assert [line["num_tokens"] for line in went_on.steps()] == [line["num_tokens"] for line in first.steps()]
    same_weights(went_on, first)
    assert {path.name for path in out.glob("checkpoint-*")} == {f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"}


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_it_does_not_begin_anew_over_its_checkpoints(before: int, after: int, ranks: Ranks) -> None:
    """With the same command, whose steps would have other rows. All ranks are refused, and no file is touched."""
    job = {**train(2, **SAVES), "save_total_limit": 1}
    first = ranks(f"same-command-{before}", world=before, rows=ROWS, train={**job, "save_total_limit": None})
    out = left_by(first, f"same-command-{before}-{after}")
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused = ranks("same-command", world=after, rows=ROWS, train=job, resume="auto", out=out)
    assert refused.statuses == [2] * after
    problem = refused.err(0)
    assert f"checkpoint-{SAVED} was written by this run on {before} process" in problem
    assert (
        f"resume_from_checkpoint={out / f'checkpoint-{SAVED}'} gradient_accumulation_steps={2 * before // after},"
        in (problem)
    )
    assert {path: path.read_bytes() for path in out.glob("checkpoint-*/*")} == files
