"""A statement: a number that was measured, its bound, and what it was measured on."""

from __future__ import annotations

from dataclasses import dataclass

PASSED, FAILED, NOT_CHECKED = "pass", "FAIL", "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The result of a check.

    Attributes:
        value: the statement holds if it is at most `bound`; NaN is not.
        detail: what it was measured on, in a few words.
    """

    value: float
    bound: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A statement and its status.

    Attributes:
        measured, bound: None if it was not checked, or the check itself broke.
        detail: what it was measured on, or why it was not.
        seconds: duration of the check.
    """

    statement: str
    status: str
    measured: float | None = None
    bound: float | None = None
    detail: str = ""
    seconds: float = 0.0


class NotChecked(Exception):
    """This statement cannot be checked for this model or these rows; the message says why."""
