"""Numbers of an evaluation as text with their units, for the page and for the terminal."""

from __future__ import annotations

import math

from honed.quantities import percent_text, short_text


def cell_text(value: float | None, unit: str, *, signed: bool = False) -> str:
    """A number with its unit: for a share, 0.5 is "50%", and a difference of 0.1 is "+10.0 points"; "-" for none."""
    if value is None or (unit != "nats" and math.isnan(value)):  # nothing to count; but a loss can be NaN
        return "-"
    sign = "+" if signed and value > 0 else ""
    if unit == "share":
        return f"{sign}{100 * value:.1f} points" if signed else percent_text(value)
    return f"{sign}{value:.4f}" if unit == "nats" else f"{sign}{short_text(value)}"


def interval_text(low: float | None, high: float | None, unit: str, *, signed: bool = False) -> str:
    """Both bounds: "-1.0 to +2.5 points"; "-" if there are none."""
    if low is None or high is None:
        return "-"
    start, end = (cell_text(value, unit, signed=signed) for value in (low, high))
    return f"{start.removesuffix(' points')} to {end}"
