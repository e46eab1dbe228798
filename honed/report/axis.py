"""One axis of a chart: the range it shows, and ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from honed.quantities import tidy_exponent

# Values whose relative difference is below this differ only by rounding: drawn as a constant.
SAME = 1e-9
SMALLEST = 1e-290


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A linear axis from `low` to `high` (low < high), with `ticks` at multiples of `step` within it."""

    low: float
    high: float
    step: float
    ticks: tuple[float, ...]

    def position(self, value: float) -> float:
        """The position of `value`: 0.0 at `low`, 1.0 at `high`."""
        return (value - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        """The text at a tick."""
        return tick_text(tick, step=self.step, largest=max(abs(self.low), abs(self.high)))


def value_axis(values: Sequence[float], *, from_zero: bool = False, intervals: int = 4) -> Axis:
    """An axis that contains all values and begins and ends at a tick.

    Args:
        values: finite numbers, at least one.
        from_zero: begin at 0 if no value is negative. The axis does so anyway if the smallest value is less than half
            of the largest, because cutting it would save little space and mislead.
        intervals: the desired number of intervals between ticks.
    """
    low, high = _spread(min(values), max(values))
    if low >= 0 and (from_zero or low < high / 2):
        low = 0.0
    step = _round_step(low, high, intervals)
    first, last = math.floor(low / step + SAME), math.ceil(high / step - SAME)
    ticks = tuple(_multiple(k, step) for k in range(first, last + 1))
    return Axis(low=ticks[0], high=ticks[-1], step=step, ticks=ticks)


def step_axis(steps: Sequence[float]) -> Axis:
    """An axis from the smallest to the largest of `steps` (at least one), with ticks only at whole steps."""
    low, high = min(steps), max(steps)
    if high - low < 1:
        low, high = low - 1, high + 1
    step = max(1.0, _round_step(low, high, 5))
    inside = range(math.ceil(low / step - SAME), math.floor(high / step + SAME) + 1)
    return Axis(low=low, high=high, step=step, ticks=tuple(_multiple(k, step) for k in inside))


def _spread(low: float, high: float) -> tuple[float, float]:
    """Adds a margin around a constant, so that it is drawn in the middle and not on an axis of zero length."""
    largest = max(abs(low), abs(high))
    if largest < SMALLEST:
        return 0.0, 1.0
    if high - low <= SAME * largest:
        return low - 0.1 * largest, high + 0.1 * largest
    return low, high


def _round_step(low: float, high: float, intervals: int) -> float:
    """1, 2 or 5 times a power of ten, such that low..high has about `intervals` steps."""
    rough = (high - low) / intervals
    power = math.floor(math.log10(rough))
    for factor in (1, 2, 5, 10):
        step = _multiple(factor, 10.0**power)
        if step >= rough / 1.4:
            return step
    return _multiple(10, 10.0**power)


def _multiple(k: int, step: float) -> float:
    """k * step, without rounding errors such as 3 * 0.1 = 0.30000000000000004."""
    return float(f"{k * step:.12g}")


def tick_text(value: float, *, step: float, largest: float) -> str:
    """The label of a tick: exact, and different from its neighbours.

    Args:
        value: the tick, a multiple of `step`.
        step: the distance between ticks: 1, 2 or 5 times a power of ten.
        largest: the largest magnitude on the axis, which decides between 0.002, 2e-5, 20k and 3M.
    """
    place = math.floor(math.log10(step) + 1e-9)
    if value == 0:
        return "0"
    if 1e-3 <= largest < 1e5:
        return f"{value:,.{max(0, -place)}f}"
    if 1e5 <= largest < 1e15:
        return _with_suffix(value, place, largest)
    digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - place)
    return tidy_exponent(f"{value:.{digits}e}")


def _with_suffix(value: float, place: int, largest: float) -> str:
    thousands = min(4, math.floor(math.log10(largest) + 1e-9) // 3)
    decimals = max(0, 3 * thousands - place)
    if decimals > 2:  # 1,000,002 reads better than 1.000002M
        return f"{value:,.{max(0, -place)}f}"
    return f"{value / 1000.0**thousands:,.{decimals}f}{' kMGT'[thousands]}"
