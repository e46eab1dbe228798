"""What a statement is: a number that was measured, the bound that it must keep to, and what it was measured on."""

from __future__ import annotations

from dataclasses import dataclass

PASSED, FAILED, NOT_CHECKED = "pass", "FAIL", "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the check of a statement gives.

    Attributes:
        value: what was measured; the statement holds if it is at most `bound`. Nan does not.
        detail: on what, in a few words.
    """

    value: float
    bound: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A statement with what became of it.

    Attributes:
        measured, bound: None where it was not checked, or where the check itself broke.
        detail: what it was measured on, or why it was not.
        seconds: that it took.
    """

    statement: str
    status: str
    measured: float | None = None
    bound: float | None = None
    detail: str = ""
    seconds: float = 0.0


class NotChecked(Exception):
    """This statement cannot be checked for this model or these rows; the message says why."""
