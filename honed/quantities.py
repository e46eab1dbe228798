"""Readable numbers: counts with their nouns, percentages, durations."""

from __future__ import annotations


def count_text(number: float) -> str:
    """1234567 -> "1,234,567"; fractions get three significant digits."""
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
    return f"{number:.3g}" if 1e-3 <= size < 999.5 else tidy_exponent(f"{number:.2e}")


def percent_text(share: float) -> str:
    """0.6 -> "60%"; below ten percent with one decimal: 0.034 -> "3.4%"."""
    percent = 100 * share
    return f"{percent:.0f}%" if percent == 0 or abs(percent) >= 9.95 else f"{percent:.1f}%"


def duration_text(seconds: float) -> str:
    """Formats seconds as "0.4 s", "62 s", "5 min 04 s", "2 h 05 min" or "3 d 4 h"."""
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


def age_text(seconds: float) -> str:
    """An age in its largest unit: "now", "5 min", "3 h", "12 days"."""
    if seconds < 60:
        return "now"
    if seconds < 3600:
        return f"{int(seconds // 60)} min"
    return f"{int(seconds // 3600)} h" if seconds < 48 * 3600 else counted(int(seconds // 86400), "day")


def tidy_exponent(text: str) -> str:
    """ "1.50e-05" -> "1.5e-5"."""
    mantissa, _, exponent = text.partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"
