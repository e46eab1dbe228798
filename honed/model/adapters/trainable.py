"""Chooses which of a model's own weights are trained, by parameter name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from honed.errors import RecipeError

NAMES_SHOWN = 3


def train_only(model: nn.Module, patterns: Sequence[str]) -> str:
    """Freezes every parameter that the patterns do not choose, in place; returns a note with the numbers.

    Args:
        model: a transformers model without an adapter.
        patterns: regular expressions, searched for in the names of `model.named_parameters()`. One that begins with "!"
            freezes what it matches; if all do, the rest is trained. A tied weight is found by any of its names.

    Raises:
        RecipeError: a pattern is invalid or matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    chosen = [_found(pattern, names) for pattern in patterns if not pattern.startswith("!")] or [set(names)]
    frozen = [_found(pattern[1:], names) for pattern in patterns if pattern.startswith("!")]
    of_name = dict(model.named_parameters(remove_duplicate=False))
    trained = {id(of_name[name]) for name in set().union(*chosen)} - {id(of_name[n]) for n in set().union(*frozen)}
    if not trained:
        raise RecipeError(f"trainable={list(patterns)} leaves no weight to train.", fix="take a `!` pattern out")
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained and parameter.requires_grad)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters())]
    tensors = sum(p.requires_grad for p in model.parameters())
    return f"trainable: {counts[0]:,} of {counts[1]:,} parameters are trained, in {tensors:,} tensors"


def _found(pattern: str, names: Sequence[str]) -> set[str]:
    try:
        found = {name for name in names if re.search(pattern, name)}
    except re.error as error:
        raise RecipeError(f"trainable: {pattern!r} is not a regular expression: {error}", fix="correct it") from None
    if not found:
        like = ", ".join(names[-NAMES_SHOWN:])
        raise RecipeError(
            f"trainable: no parameter's name contains {pattern!r}.",
            fix=f"names look like {like}; dots stand for any letter",
        )
    return found
