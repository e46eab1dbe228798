"""AdamW in the backward pass: the weights are those of ordinary AdamW, and gradients are never all alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from honed.errors import RecipeError, RunError
from honed.train.trainer.trainer import SFTTrainer

Trainers = Callable[..., SFTTrainer]
JOB = {"max_grad_norm": 0.0, "learning_rate": 0.01, "weight_decay": 0.1, "lr_scheduler_type": "linear", "max_steps": 5}


def peak_of(model: torch.nn.Module) -> list[int]:
    """One number that grows to the most bytes of gradients alive at once, seen whenever one is complete."""
    weights, peak = list(model.parameters()), [0]

    def look(_: torch.Tensor) -> None:
        peak[0] = max(peak[0], sum(w.grad.nbytes for w in weights if w.grad is not None))

    for weight in weights:
        weight.register_post_accumulate_grad_hook(look)
    return peak


@pytest.mark.parametrize("way", [{"optim": "adamw_torch"}, {"gradient_checkpointing": False}, {}], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_the_weights_are_those_of_adamw(
    way: dict[str, Any], tied: bool, make: Trainers, tiny_model: Callable[..., Any], chat_rows: Any
) -> None:
    trainers, peaks = [], []
    for early in (False, True):
        model = tiny_model(dtype=torch.float64, tie_word_embeddings=tied)
        peaks.append(peak_of(model))
        options = {**JOB, "optim": "adamw_torch_fused", **way, "optimizer_in_backward": early}
        trainer = make(chat_rows, model=model, **options)
        trainer.train()
        trainers.append(trainer)
    ordinary, early = trainers
    for ours, theirs in zip(early.model.parameters(), ordinary.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    for ours, theirs in zip(early.state.log_history[:-1], ordinary.state.log_history[:-1], strict=True):
        for key in ("loss", "grad_norm", "learning_rate"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-6), key
    sizes = [weight.nbytes for weight in early.model.parameters()]
    assert peaks[0][0] == sum(sizes)
    assert peaks[1][0] == max(sizes)


def test_a_backward_pass_of_somebody_else_is_no_step(make: Trainers, chat_rows: Any) -> None:
    trainer = make(chat_rows, **JOB, optim="adamw_torch", optimizer_in_backward=True)
    trainer.train()
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    trainer.model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    for weight, then in zip(trainer.model.parameters(), before, strict=True):
        assert torch.equal(weight, then) and weight.grad is not None


def test_what_is_not_finite_ends_the_run(make: Trainers, chat_rows: Any) -> None:
    class Poisoned(SFTTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) * float("nan")

    trainer = make(chat_rows, **JOB, optim="adamw_torch", optimizer_in_backward=True)
    trainer.__class__ = Poisoned
    with pytest.raises(RunError, match="not finite in step 1"):
        trainer.train()


def test_an_optimizer_of_ones_own_is_refused(make: Trainers, chat_rows: Any) -> None:
    own = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})}
    with pytest.raises(RecipeError, match="your own optimizer"):
        make(chat_rows, trainer=own, optim="adamw_torch", optimizer_in_backward=True)
