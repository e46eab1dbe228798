"""AdamW on bfloat16 weights: rounding that is right on average, and curves that follow float32's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from honed.errors import RecipeError
from honed.train.optimizers.stochastic_rounding import StochasticRoundingAdamW, stochastic_round
from honed.train.trainer.trainer import SFTTrainer

Trainers = Callable[..., SFTTrainer]
ROUNDS = "bf16_stochastic_round=True"
JOB: dict[str, Any] = {"optim": "adamw_torch", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2.0**127, min_value=-(2.0**127)))
def test_a_number_goes_to_one_of_its_neighbours(value: float) -> None:
    x = torch.full((64,), value, dtype=torch.float32)
    down = torch.from_numpy(x.numpy().view(np.uint32) >> 16 << 16).view(torch.float32)  # towards 0
    away = torch.from_numpy(down.numpy().view(np.uint32) + (1 << 16)).view(torch.float32)
    rounded = stochastic_round(x, noise()).float()
    assert ((rounded == down) | (rounded == away)).all()
    if value == float(down[0]):
        assert torch.equal(rounded, down)


def test_the_mean_of_many_roundings_is_the_number() -> None:
    n = 1 << 16
    for value in (1.001, -3.1415927, 1e-5, -7.3e-20, 123456.789):
        x = torch.full((n,), value, dtype=torch.float32)
        rounded = stochastic_round(x, noise()).double()
        exact = float(x[0].double())
        gap = float(rounded.max() - rounded.min())
        assert gap > 0
        assert abs(float(rounded.mean()) - exact) < 5 * gap / 2 / n**0.5  # five standard errors at most


def test_what_is_not_finite_stays_so() -> None:
    odd = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1, 0x7F800000, -0x800000], dtype=torch.int32).view(torch.float32)
    rounded = stochastic_round(odd, noise())
    assert rounded[:3].isnan().all() and rounded[3:].tolist() == [float("inf"), float("-inf")]


def fitted(weight: torch.Tensor, make_optimizer: Callable[..., Any], *, steps: int) -> list[float]:
    """The losses of a least-squares fit whose minimum is far away in units of the learning rate."""
    generator = noise(1)
    x_MI = torch.randn(256, 32, generator=generator)
    y_MO = x_MI @ torch.randn(32, 16, generator=generator)
    weight = torch.nn.Parameter(weight)
    optimizer, losses = make_optimizer([weight]), []
    for _ in range(steps):
        loss = (x_MI @ weight.float() - y_MO).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_the_loss_follows_float32_where_plain_bfloat16_stalls() -> None:
    start, steps, options = torch.ones(32, 16) * 2, 600, {"lr": 2e-3, "weight_decay": 0.0}
    exact = fitted(start.clone(), lambda w: torch.optim.AdamW(w, **options), steps=steps)
    rounded = fitted(start.bfloat16(), lambda w: StochasticRoundingAdamW(w, **options), steps=steps)
    stalled = fitted(start.bfloat16(), lambda w: torch.optim.AdamW(w, **options), steps=steps)
    assert all(abs(a - b) < 0.02 * a for a, b in zip(exact, rounded, strict=True))
    assert exact[-1] < 0.5 * exact[0]
    assert stalled[-1] > 1.2 * exact[-1]


def test_float32_weights_are_updated_as_by_torch() -> None:
    both = []
    for kind in (torch.optim.AdamW, StochasticRoundingAdamW):
        weights = [torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)), torch.nn.Parameter(torch.tensor(0.5))]
        optimizer = kind(weights, lr=0.01, weight_decay=0.1)
        for n in range(3):
            for weight in weights:
                weight.grad = torch.full_like(weight, 0.3) * (n + 1)
            optimizer.step()
        both.append(weights)
    for ours, theirs in zip(*both, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-7)


def test_matrices_in_parts_and_in_any_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("honed.train.optimizers.stochastic_rounding.CHUNK_ELEMENTS", 8)
    weight = torch.nn.Parameter(torch.linspace(1, 2, 28, dtype=torch.bfloat16).view(4, 7).t())
    before = weight.detach().clone()
    optimizer = StochasticRoundingAdamW([weight], lr=0.25, weight_decay=0.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert torch.allclose(weight.float(), before.float() - 0.25, atol=2**-7)
    state = optimizer.state[weight]
    assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}


@pytest.mark.parametrize("early", [False, True], ids=["", "in_backward"])
def test_a_run_that_goes_on_is_the_same_to_the_bit(
    early: bool, make: Trainers, tiny_model: Callable[..., Any], chat_rows: Any, tmp_path: Path
) -> None:
    def run(folder: str, stop: int | None = None, **options: Any) -> SFTTrainer:
        model = tiny_model(dtype=torch.bfloat16)
        places = {"output_dir": str(tmp_path / folder), "save_strategy": "steps", "save_steps": 3}
        trainer = make(
            chat_rows, model=model, **JOB, **places, max_steps=6, learning_rate=1e-3, weight_decay=0.1,
            optim_args=ROUNDS, optimizer_in_backward=early, **options,
        )  # fmt: skip
        assert not [note for note in trainer.notes if "bfloat16" in note]
        trainer.train(stop and str(tmp_path / "whole" / f"checkpoint-{stop}"))
        return trainer

    whole, resumed = run("whole"), run("second", stop=3)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert a.dtype == torch.bfloat16 and torch.equal(a, b)


def test_in_the_backward_pass_the_same_bits(make: Trainers, tiny_model: Callable[..., Any], chat_rows: Any) -> None:
    models = []
    for early in (False, True):
        model = tiny_model(dtype=torch.bfloat16)
        options = {**JOB, "optimizer_in_backward": early, "optim_args": ROUNDS, "max_steps": 3, "learning_rate": 1e-3}
        make(chat_rows, model=model, **options).train()
        models.append(model)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)


def test_a_model_trained_in_bfloat16_follows_float32(
    make: Trainers, tiny_model: Callable[..., Any], chat_rows: Any
) -> None:
    def curve(dtype: torch.dtype, **options: Any) -> np.ndarray:
        model = tiny_model(dtype=torch.bfloat16, num_hidden_layers=1).to(dtype)  # all start from the same numbers
        options = {**JOB, "max_steps": 100, "logging_steps": 10, "learning_rate": 4e-4, **options}
        trainer = make(chat_rows, model=model, gradient_checkpointing=False, token_metrics=False, **options)
        trainer.train()
        return np.array([line["loss"] for line in trainer.state.log_history if "loss" in line])

    exact = curve(torch.float32)
    rounded = curve(torch.bfloat16, optim_args=ROUNDS)
    stalled = curve(torch.bfloat16)
    assert exact[-1] < 0.3 * exact[0]
    assert (np.abs(rounded - exact) < 0.05).all()  # nats
    assert stalled[-1] > exact[-1] + 1


def test_what_is_lost_or_has_no_effect_is_told(make: Trainers, tiny_model: Callable[..., Any], chat_rows: Any) -> None:
    def notes(dtype: torch.dtype, **options: Any) -> str:
        return " ".join(make(chat_rows, model=tiny_model(dtype=dtype), **options).notes)

    assert "an update below about 1/512" in notes(torch.bfloat16, **JOB)
    assert "bfloat16" not in notes(torch.bfloat16, **JOB, optim_args=ROUNDS)
    assert "bfloat16" not in notes(torch.float32, **JOB)
    assert "bf16_stochastic_round has no effect" in notes(torch.float32, **JOB, optim_args=ROUNDS)
    with pytest.raises(RecipeError, match="your own optimizer has neither"):
        make(chat_rows, **JOB, optim_args=ROUNDS, trainer={"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})})
