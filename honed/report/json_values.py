"""Values from JSON files that may contain anything."""

from __future__ import annotations

import json
from collections.abc import Mapping

# Above this, a sum or an axis margin could overflow a float; such a value is treated as not finite.
LARGEST = 1e300


def finite(value: object) -> float | None:
    """The number in `value`; None for null, NaN, infinity, magnitudes over 1e300, booleans and anything else.

    Strings that contain a number count, because some loggers write "nan" or "0.3" as a string.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= LARGEST else None


def mapping(value: object) -> Mapping[str, object]:
    """`value` if it is a JSON object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def text_of(value: object) -> str | None:
    """A JSON value as text: strings unchanged, null as None, the rest as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
