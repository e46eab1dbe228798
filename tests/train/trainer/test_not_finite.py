"""A step whose loss or gradient is no number changes no weight, is told with its rows, and too many end the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from honed.errors import RunError
from honed.train.trainer.trainer import SFTTrainer


class Poisoned(SFTTrainer):
    """The loss of chosen steps is no number, or their gradient alone is."""

    steps: tuple[int, ...] = ()
    gradient_only = False

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        if self.state.global_step + 1 not in self.steps:
            return loss
        if not self.gradient_only:
            return loss * float("nan")
        zero = next(p for p in self.model.parameters() if p.requires_grad).sum() * 0
        return loss + torch.sqrt(zero.abs()) * 0  # 0, with the gradient 0 * inf


@pytest.fixture
def poisoned(make: Callable[..., SFTTrainer], chat_rows: Any) -> Callable[..., SFTTrainer]:
    def poison(*steps: int, gradient_only: bool = False, **changes: Any) -> SFTTrainer:
        trainer = make(chat_rows, per_device_train_batch_size=2, max_steps=6, **changes)
        trainer.__class__ = Poisoned
        trainer.steps, trainer.gradient_only = steps, gradient_only
        return trainer

    return poison


@pytest.mark.parametrize("changes", [{"gradient_only": True}, {"optim": "adamw_torch"}, {"max_grad_norm": 1.0}])
def test_the_step_is_not_taken(poisoned: Callable[..., SFTTrainer], changes: dict[str, Any]) -> None:
    trainer = poisoned(1, **changes)
    trainer.args.max_steps = 1
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.watch.not_finite == 1


def test_its_rows_are_told_and_training_goes_on(poisoned: Callable[..., SFTTrainer]) -> None:
    seen: list[list[int]] = []
    trainer = poisoned(2, 4)
    collate = trainer.data_collator

    def watching(rows: list[Any]) -> Any:
        seen.append([len(row.input_ids) for row in rows])
        return collate(rows)

    trainer.data_collator = watching
    trainer.train()
    assert trainer.state.global_step == 6 and trainer.watch.not_finite == 2
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
    lines = [json.loads(line) for line in (Path(trainer.args.output_dir) / "not_finite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        lengths = [len(trainer.train_dataset[row["row"]].input_ids) for row in line["rows"]]
        assert lengths == seen[line["step"] - 1] and line["losses"] == ["nan"]
    worst = trainer.worst_steps()
    assert {line["step"] for line in worst[:2]} == {2, 4} and len(worst) == 6
    assert [line["loss"] for line in worst[2:]] == sorted((line["loss"] for line in worst[2:]), reverse=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"accelerator_config": {"use_seedable_sampler": False}},
        {"dataloader_num_workers": 2, "dataloader_in_order": False},
    ],
)
def test_rows_are_not_named_where_their_order_was_not_fixed(
    poisoned: Callable[..., SFTTrainer], changes: dict[str, Any]
) -> None:
    trainer = poisoned(2, **changes)
    trainer.train()
    [line] = (Path(trainer.args.output_dir) / "not_finite.jsonl").read_text().splitlines()
    assert json.loads(line)["rows"] is None
    assert {step["rows"] for step in trainer.worst_steps()} == {None}


def test_too_many_end_the_run(poisoned: Callable[..., SFTTrainer]) -> None:
    trainer = poisoned(1, 2, 3, max_not_finite_steps=2)
    with pytest.raises(RunError, match="3 steps, the last of them step 3"):
        trainer.train()


def test_what_an_earlier_run_told_is_not_taken_for_this_ones(poisoned: Callable[..., SFTTrainer]) -> None:
    file = Path(poisoned(2, max_not_finite_steps=2).args.output_dir) / "not_finite.jsonl"
    for steps, found in (((2, 4), [2, 4]), ((3,), [3]), ((), None)):
        poisoned(*steps).train()
        told = [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else None
        assert told == found


def test_a_resumed_run_tells_no_step_twice(poisoned: Callable[..., SFTTrainer]) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3}
    poisoned(2, 5, **saving).train()
    again = poisoned(2, 5, **saving)
    again.train(resume_from_checkpoint=str(Path(again.args.output_dir) / "checkpoint-3"))
    lines = (Path(again.args.output_dir) / "not_finite.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 5] and again.watch.not_finite == 2
