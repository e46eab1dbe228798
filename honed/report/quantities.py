"""Numbers as a reader wants them: counts, shares, durations, and the labels of an axis."""

from __future__ import annotations

import math

# Beyond this a sum or a margin of an axis could overflow a float; such a value is treated as not finite.
LARGEST = 1e300


def finite(value: object) -> float | None:
    """The number that `value` holds, or None for null, NaN, infinity, over 1e300, booleans and anything else.

    Text that spells a number counts, because some loggers write "nan" or "0.3" as text.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= LARGEST else None


def count_text(number: float) -> str:
    """1234567 -> "1,234,567"; a fraction keeps three digits."""
    return f"{int(number):,}" if float(number).is_integer() and abs(number) < 1e15 else short_text(number)


def counted(number: float, singular: str, plural: str = "") -> str:
    """1, "row" -> "1 row"; 2, "row" -> "2 rows"."""
    return f"{count_text(number)} {singular if number == 1 else plural or singular + 's'}"


def short_text(number: float) -> str:
    """Three significant digits: 4.8123 -> "4.81", 18231.2 -> "18,231", 0.00002 -> "2e-5"."""
    size = abs(number)
    if size == 0:
        return "0"
    if 999.5 <= size < 1e6:
        return f"{number:,.0f}"
    return f"{number:.3g}" if 1e-3 <= size < 999.5 else _tidy_exponent(f"{number:.2e}")


def percent_text(share: float) -> str:
    """0.6 -> "60%"; under ten percent one decimal is kept: 0.034 -> "3.4%"."""
    percent = 100 * share
    return f"{percent:.0f}%" if percent == 0 or abs(percent) >= 9.95 else f"{percent:.1f}%"


def duration_text(seconds: float) -> str:
    """Seconds to "0.4 s", "62 s", "5 min 04 s", "2 h 05 min" or "3 d 4 h"."""
    if abs(seconds) < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 2 * 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400:,} d {whole % 86400 // 3600} h"


def gigabytes_text(gigabytes: float) -> str:
    """2.4 -> "2.4 GB"."""
    return f"{short_text(gigabytes)} GB"


def tick_text(value: float, *, step: float, largest: float) -> str:
    """The label of a tick: exact, and unlike its neighbours'.

    Args:
        value: the tick, a multiple of `step`.
        step: the distance between ticks: 1, 2 or 5 times a power of ten.
        largest: the greatest magnitude on the axis, which decides between 0.002, 2e-5, 20k and 3M.
    """
    place = math.floor(math.log10(step) + 1e-9)
    if value == 0:
        return "0"
    if 1e-3 <= largest < 1e5:
        return f"{value:,.{max(0, -place)}f}"
    if 1e5 <= largest < 1e15:
        return _with_suffix(value, place, largest)
    digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - place)
    return _tidy_exponent(f"{value:.{digits}e}")


def _with_suffix(value: float, place: int, largest: float) -> str:
    thousands = min(4, math.floor(math.log10(largest) + 1e-9) // 3)
    decimals = max(0, 3 * thousands - place)
    if decimals > 2:  # 1,000,002 reads better than 1.000002M
        return f"{value:,.{max(0, -place)}f}"
    return f"{value / 1000.0**thousands:,.{decimals}f}{' kMGT'[thousands]}"


def _tidy_exponent(text: str) -> str:
    """ "1.50e-05" -> "1.5e-5"."""
    mantissa, _, exponent = text.partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"
