"""A thing that is measured of a model, and the same thing of two models side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from honed.evaluate.statistics import Ratio, interval

# Of measures that have a good direction; those of parts of the loss ("loss.role.user") go the way of the loss.
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
        name: as gates and the JSON file call it.
        label: as a table calls it.
        unit: "nats", "share" (0 to 1) or what is counted.
        ratio: what it is the ratio of, unit by unit; two models are compared on the same units.
        of: how many tokens or answers it is about.
    """

    name: str
    label: str
    unit: str
    ratio: Ratio
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A measure as it is shown.

    Attributes:
        value: of the model.
        base: of the model that it is compared with; None without one.
        low, high: 95% interval of value - base, or of the value where there is no base; None where it has none.
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
    """ "lower" or "higher", whichever is better; None where neither is."""
    return BETTER.get(name.partition(".")[0])


def compare_measures(
    tuned: Sequence[Measure], base: Sequence[Measure] | None = None, *, seed: int = 0
) -> list[Compared]:
    """The measures with their intervals; `base` holds the same ones of the other model, in the same order."""
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
    """exp of a loss in nats; infinite where that is too large for a float."""
    return math.inf if loss > 700 else math.exp(loss)
