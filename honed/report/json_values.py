"""Values of JSON files that may hold anything."""

from __future__ import annotations

import json
from collections.abc import Mapping

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


def mapping(value: object) -> Mapping[str, object]:
    """`value` where it is a JSON object, and an empty one where it is not."""
    return value if isinstance(value, dict) else {}


def text_of(value: object) -> str | None:
    """A JSON value as text for a reader: strings as they are, null as None, the rest as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
