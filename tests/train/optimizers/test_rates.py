"""Groups with learning rates of their own: what they keep, and what is refused. Steps with them: test_combinations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from honed.errors import RecipeError
from honed.train.optimizers.rates import notes_on_rates, with_rates


def adamw(model: Any) -> torch.optim.Optimizer:
    decays = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW([{"params": decays, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=0.5)


def test_each_weight_keeps_its_decay_and_gets_the_first_factor_that_fits(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    optimizer = with_rates(adamw(model), model, {"embed": 0.1, r"layers\.1": 3.0, "norm": 7.0})
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        factor = 0.1 if "embed" in name else 3.0 if "layers.1" in name else 7.0 if "norm" in name else 1.0
        assert found[id(p)]["lr"] == pytest.approx(0.5 * factor), name
        assert found[id(p)]["weight_decay"] == (0.1 if p.ndim >= 2 else 0.0), name
    assert optimizer.param_groups[0]["lr"] == 0.5  # whose rate is logged
    assert with_rates(optimizer, model, {"embed": 0.1}) is optimizer
    assert optimizer.param_groups[0]["lr"] == 0.5  # once is enough


def test_the_notes_count(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    count = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert notes_on_rates(model, {"norm": 2.0}) == [
        f"learning_rates: 'norm' learns 2 times as fast: {count:,} numbers in 5 tensors"
    ]


@pytest.mark.parametrize(
    ("rates", "problem"),
    [
        ({"lora_B": 16.0}, "no trained weight's name contains 'lora_B'"),
        ({"mlp": 2.0, "down_proj": 3.0}, "earlier patterns matched them all"),
        ({"(": 2.0}, "not a regular expression"),
    ],
)
def test_patterns_without_effect_are_refused(
    rates: dict[str, float], problem: str, tiny_model: Callable[..., Any]
) -> None:
    with pytest.raises(RecipeError, match=problem):
        notes_on_rates(tiny_model(), rates)


def test_an_optimizer_of_other_weights_is_refused(tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match="a learning rate for each weight"):
        with_rates(adamw(tiny_model()), tiny_model(), {"mlp": 2.0})
