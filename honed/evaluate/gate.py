"""A gate: how much worse than the base model a model may be before the command fails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from honed.errors import RecipeError
from honed.evaluate.measure import BETTER, Compared, direction

EXAMPLE = "for example: --gate loss=0.02,stops=-0.05"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A limit on the change of one measure.

    Attributes:
        name: the measure.
        limit: for losses, the allowed relative increase (0.02: up to 2% more). For all others, the allowed change in
            the measure's own unit: 0 or positive if lower is better, 0 or negative if higher is better (-0.05: a share
            may fall by up to 5 points).
    """

    name: str
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of a rule; `change` is relative for losses."""

    rule: Rule
    change: float
    passed: bool

    def __str__(self) -> str:
        if math.isnan(self.change):
            return f"FAIL  {self.rule.name} cannot be compared: it is no number for one of the models"
        text = f"{self.rule.name} changed by {self.change:+.4g}"
        text += f" ({self.change:+.2%})" if is_relative(self.rule.name) else ""
        return f"{'pass' if self.passed else 'FAIL'}  {text}; allowed {self.rule.limit:+.4g}"


def read_gate(text: str) -> list[Rule]:
    """Parses `NAME=LIMIT,NAME=LIMIT`; case does not matter.

    Raises:
        RecipeError: unknown or repeated measure, no number, or a limit that would require an improvement.
    """
    rules = [_rule(part) for part in text.split(",")]
    names = [rule.name for rule in rules]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"--gate names {twice} twice.", fix="name each measure once")
    return rules


def is_relative(name: str) -> bool:
    """Whether a limit on this measure is relative to the base model's value."""
    return name.partition(".")[0] == "loss"


def judge(rules: Sequence[Rule], found: Sequence[Compared]) -> list[Verdict]:
    """Checks each rule against the measured differences, not against their confidence intervals.

    Raises:
        RecipeError: a rule names something that was not measured, or there is no base model.
    """
    measured = {compared.name.lower(): compared for compared in found if direction(compared.name)}
    missing = [rule.name for rule in rules if rule.name not in measured]
    if missing:
        raise RecipeError(
            f"--gate: {', '.join(missing)} was not measured here.", fix=f"choose from: {', '.join(measured)}"
        )
    return [_verdict(rule, measured[rule.name]) for rule in rules]


def _rule(part: str) -> Rule:
    name, _, number = (word.strip() for word in part.rpartition("="))
    name = name.lower()
    better = direction(name)
    if better is None:
        raise RecipeError(f"--gate: {part!r} names no measure.", fix=f"{EXAMPLE}; of: {', '.join(BETTER)}")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise RecipeError(f"--gate: {part!r} has no finite number after the =.", fix=EXAMPLE)
    if limit < 0 if better == "lower" else limit > 0:
        sign, moves = ("0 or more", "rise") if better == "lower" else ("0 or less", "fall")
        raise RecipeError(
            f"--gate: {part!r} asks for an improvement.", fix=f"{name} may {moves}: set {sign}; {EXAMPLE}"
        )
    return Rule(name=name, limit=limit)


def _verdict(rule: Rule, compared: Compared) -> Verdict:
    base, difference = compared.base, compared.difference
    if base is None or difference is None:
        raise RecipeError("--gate compares two models.", fix="name the other with --against MODEL")
    change = difference
    if is_relative(rule.name) and difference:
        change = difference / base if base else math.inf
    # NaN passes no gate
    passed = change <= rule.limit if direction(rule.name) == "lower" else change >= rule.limit
    return Verdict(rule=rule, change=change, passed=passed)
