"""Learning rates: factors for some of the weights, by parameter name, and a note on a warm-up that never ends.

LoRA+ (Hayou et al., arXiv:2402.12354) is {"lora_B": 16}: B learns faster than A.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from honed.errors import RecipeError
from honed.quantities import counted

Rates = Mapping[str, float]


def notes_on_rates(model: nn.Module, rates: Rates) -> list[str]:
    """Returns a note on how many parameters each factor applies to.

    Args:
        model: the model that is trained, with its adapter.
        rates: regular expression, searched for in parameter names -> factor; the first match counts.

    Raises:
        RecipeError: a pattern is invalid, or matches no trained parameter.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    notes = []
    for pattern, factor in rates.items():
        found = [p for name, p in trained if pattern_of(name, rates) == pattern]
        if not found:
            raise RecipeError(
                f"learning_rates: no trained weight's name contains {pattern!r}, or earlier patterns matched them all.",
                fix=f"names look like {', '.join(name for name, _ in trained[-2:])}",
            )
        many = f"{sum(p.numel() for p in found):,} numbers in {counted(len(found), 'tensor')}"
        notes.append(f"learning_rates: {pattern!r} learns {factor:g} times as fast: {many}")
    return notes


def with_rates(optimizer: Any, model: nn.Module, rates: Rates) -> Any:
    """Splits the optimizer's groups by factor, in place, and returns it; groups with factor 1 come first.

    The parts keep the group's other settings, such as its weight decay, and store the factor as `rate`. The learning
    rate, which no schedule has changed yet, is multiplied by it.

    Raises:
        RecipeError: a group of the optimizer has no learning rate, or parameters that are not the model's.
    """
    if not rates or any("rate" in group for group in optimizer.param_groups):
        return optimizer
    names = {id(p): name for name, p in model.named_parameters()}
    parts: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        if group.get("lr") is None or any(id(p) not in names for p in group["params"]):
            raise RecipeError(
                f"learning_rates needs a learning rate for each weight, which {type(optimizer).__name__} lacks.",
                fix="leave learning_rates out, or set optim='adamw_torch_fused'",
            )
        by_rate: dict[float, list[Any]] = {}
        for p in group["params"]:
            by_rate.setdefault(rates.get(pattern_of(names[id(p)], rates) or "", 1.0), []).append(p)
        parts += [{**group, "params": own, "lr": group["lr"] * rate, "rate": rate} for rate, own in by_rate.items()]
    optimizer.param_groups = sorted(parts, key=lambda group: group["rate"] != 1.0)
    return optimizer


def pattern_of(name: str, rates: Rates) -> str | None:
    """Returns the first pattern that matches a parameter's name.

    Raises:
        RecipeError: a pattern is not a valid regular expression.
    """
    for pattern in rates:
        try:
            if re.search(pattern, name):
                return pattern
        except re.error as error:
            raise RecipeError(
                f"learning_rates: {pattern!r} is not a regular expression: {error}", fix="correct it"
            ) from None
    return None


def notes_on_warm_up(warm_up: int, steps: int) -> list[str]:
    """Returns a note if the learning rate rises from 0 in all `steps`; nothing if the warm-up ends before.

    5% of one step is rounded up to that step, whose learning rate is 0.
    """
    if not warm_up >= steps > 0:
        return []
    return [f"All of {counted(steps, 'step')} are warm-up, and the first has learning rate 0: warmup_steps=0."]
