"""What a step costs does not grow with the steps before it: counted, not timed. `tests/soak` times it."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from honed.train.trainer.watched import StepWatch

if TYPE_CHECKING:
    from conftest import Trainers


class CountsCalls(TrainerCallback):
    """Calls of Python and C functions in each step."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step

        def count(frame: Any, event: str, arg: Any) -> None:
            self.calls[step] += event in ("call", "c_call")

        sys.setprofile(count)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sys.setprofile(None)


def test_a_step_makes_as_many_calls_as_those_before(make: Trainers, chat_rows: Any) -> None:
    """The same row again and again, logged each time: what looks through all past steps would make more each time."""
    counts = CountsCalls()
    trainer = make(chat_rows[:1], max_steps=50, trainer={"callbacks": [counts]})
    trainer.train()
    early, late = (sorted(counts.calls[step] for step in range(first, first + 10))[5] for first in (10, 40))
    assert early > 1000 and late == early


def test_losses_do_not_gather_on_the_device() -> None:
    """A run without checkpoints never asks for its worst steps; they are right all the same."""
    watch, losses = StepWatch(), torch.rand(2500, generator=torch.Generator().manual_seed(0))
    for step, loss in enumerate(losses, start=1):
        watch.micro_batches = [loss]
        watch.end(step)
        assert len(watch._unread) < 1000
    best = losses.topk(10)
    assert watch.worst() == list(zip((best.indices + 1).tolist(), best.values.tolist(), strict=True))
