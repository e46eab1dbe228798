"""Which of a model's own weights are trained: chosen by name, counted, and refused where a name fits nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from honed.errors import RecipeError
from honed.model.adapters.adapters import lora_config, ready_to_train
from honed.model.adapters.trainable import train_only


def trained(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([r"layers\.1\.", "embed"], lambda n: "layers.1." in n or "embed" in n),
        (["!mlp"], lambda n: "mlp" not in n),
        (["self_attn", r"!k_proj", "!layers.0"], lambda n: "layers.1.self_attn" in n and "k_proj" not in n),
        (["^lm_head"], lambda n: "embed_tokens" in n),  # the same weight: the head is tied
    ],
)
def test_names_choose(patterns: list[str], expected: Callable[[str], bool], tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    note = train_only(model, patterns)
    assert trained(model) == {name for name, _ in model.named_parameters() if expected(name)}
    count = sum(p.numel() for name, p in model.named_parameters() if expected(name))
    assert f"{count:,} of {sum(p.numel() for p in model.parameters()):,}" in note


def test_weights_frozen_before_stay_frozen(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    model.model.norm.weight.requires_grad_(False)
    train_only(model, ["norm"])
    assert "model.norm.weight" not in trained(model)


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        (["self_attn", "atention"], "no parameter's name contains 'atention'"),
        (["(mlp"], "not a regular expression"),
        (["mlp", "!mlp"], "leaves no weight"),
    ],
)
def test_patterns_without_sense_are_refused(patterns: list[str], problem: str, tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match=problem):
        train_only(tiny_model(), patterns)


def test_not_beside_an_adapter(tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match="an adapter leaves them all as they are"):
        ready_to_train(tiny_model(), lora_config(r=2), trainable=["mlp"])
