"""Detects names in an adapter's configuration that match nothing in the model, which peft silently ignores."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from honed.errors import ModelError


def notes_on_names(model: Any, config: Any) -> list[str]:
    """Returns notes on names without effect.

    Raises:
        ModelError: an option has only unknown names, or `target_parameters` is combined with dropout.
    """
    layers = [name for name, _ in model.named_modules()]
    weights = [name for name, _ in model.named_parameters()]
    notes = []
    for option, known, what in (
        ("modules_to_save", layers, "layer"),
        ("target_modules", layers, "layer"),
        ("target_parameters", weights, "weight"),
    ):
        names = getattr(config, option, None)
        if names and not isinstance(names, str):
            notes += _unknown(option, [n for n in names if not _is_named(n, known)], len(names), known, what)
    for option in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, option, None) or {}
        unknown = [pattern for pattern in patterns if not _fits(option, pattern, [*layers, *weights])]
        notes += _unknown(option, unknown, len(patterns), layers, "layer")
    notes += _without_effect(config, layers)
    if getattr(config, "target_parameters", None) and config.lora_dropout:
        raise ModelError(
            f"target_parameters adapts whole weights, and dropout is {config.lora_dropout}: it has no input to drop.",
            fix="set lora.dropout=0 (lora_dropout=0)",
        )
    return notes


def _without_effect(config: Any, layers: Sequence[str]) -> list[str]:
    """Returns notes on excluded names and layer numbers of which the model has none."""
    names = getattr(config, "exclude_modules", None) or ()
    unknown = () if isinstance(names, str) else [name for name in names if not _is_named(name, layers)]
    notes = [f"exclude_modules names {name!r}, but the model has no such layer: it has no effect" for name in unknown]
    given = getattr(config, "layers_to_transform", None)
    numbers = {int(part) for name in layers for part in name.split(".") if part.isdigit()}
    absent = sorted({*([given] if isinstance(given, int) else given or ())} - numbers)
    if absent:
        notes.append(f"layers_to_transform names {absent}, but the model has no layers of these numbers: no effect")
    return notes


def _unknown(option: str, unknown: Sequence[str], count: int, known: Iterable[str], what: str) -> list[str]:
    if not unknown:
        return []
    last = sorted({name.rsplit(".", 1)[-1] for name in known} - {""})
    close = difflib.get_close_matches(unknown[0].rsplit(".", 1)[-1], last, n=1)
    text = f"{option} names {', '.join(map(repr, sorted(unknown)))}, but the model has no such {what}"
    hint = f"did you mean {close[0]!r}?" if close else f"{what}s are called {', '.join(last)}"
    if len(unknown) == count:
        raise ModelError(f"The adapter does not fit the model: {text}.", fix=hint)
    return [f"{text}: it has no effect ({hint})"]


def _is_named(name: str, known: Iterable[str]) -> bool:
    return any(own == name or own.endswith(f".{name}") for own in known)


def _fits(option: str, pattern: str, names: Iterable[str]) -> bool:
    """Whether a pattern matches a name, in the same way as peft matches layers."""
    try:
        return any(re.match(rf"(.*\.)?({pattern})$", name) for name in names)
    except re.error as error:
        raise ModelError(f"{option}: {pattern!r} is not a regular expression: {error}", fix="correct it") from None
