"""A measure of one model, and its comparison between two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from honed.evaluate.statistics import Ratio, interval

# Which direction is better, for measures that have one; parts of the loss ("loss.role.user") follow the loss.
BETTER = {
    "loss": "lower",
    "stops": "higher",
    "distinct1": "higher",
    "distinct2": "higher",
    "distinct3": "higher",
    "repetition": "lower",
    "form": "higher",
    "tasks": "higher",
    "exact": "higher",
    "contains": "higher",
    "regex": "higher",
    "json_schema": "higher",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number about one model.

    Attributes:
        name: the name in gates and the JSON file.
        label: the name in tables.
        unit: "nats", "share" (0 to 1) or what is counted.
        ratio: sums and weights per row or prompt; two models are compared on the same ones.
        of: the number of tokens or answers behind it.
    """

    name: str
    label: str
    unit: str
    ratio: Ratio
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A measure as it is reported.

    Attributes:
        value: the model's value.
        base: the value of the base model; None without one.
        low, high: 95% confidence interval of value - base, or of value if there is no base; None if there is none.
    """

    name: str
    label: str
    unit: str
    of: int
    value: float
    base: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def difference(self) -> float | None:
        """value - base."""
        return None if self.base is None else self.value - self.base


def direction(name: str) -> str | None:
    """ "lower" or "higher", whichever is better; None if neither is."""
    return BETTER.get(name.partition(".")[0])


def compare_measures(
    tuned: Sequence[Measure], base: Sequence[Measure] | None = None, *, seed: int = 0
) -> list[Compared]:
    """The measures with their confidence intervals; `base` has the same measures of the other model, in this order."""
    others: Sequence[Measure | None] = [None] * len(tuned) if base is None else base
    return [_compared(one, other, seed=seed) for one, other in zip(tuned, others, strict=True)]


def _compared(one: Measure, other: Measure | None, *, seed: int) -> Compared:
    if other is not None and other.name != one.name:
        raise ValueError(f"{one.name} is compared with {other.name}")
    low, high = interval(one.ratio, other.ratio if other else None, seed=seed) or (None, None)
    return Compared(
        name=one.name,
        label=one.label,
        unit=one.unit,
        of=one.of,
        value=one.ratio.value,
        base=other.ratio.value if other else None,
        low=low,
        high=high,
    )


def perplexity(loss: float) -> float:
    """exp of a loss in nats; infinite if that overflows."""
    return math.inf if loss > 700 else math.exp(loss)
