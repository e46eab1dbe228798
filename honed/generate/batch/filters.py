"""Which answers of a batch are kept, and why the others are not."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from honed.errors import DataError, RecipeError

Verifier = Callable[[Mapping[str, Any], str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Conditions for keeping an answer.

    Attributes:
        min_length, max_length: bounds on the characters of the stripped answer; None for no bound.
        only_stopped: drop answers that were cut instead of ending by themselves.
        near: similarity from which an answer is a near duplicate of an earlier kept one, by MinHash over question and
            answer; None keeps near duplicates. Exact duplicates are always dropped.
        verify: `module:function`, called with the row and the answer; answers for which it returns false are dropped.
    """

    min_length: int | None = 1
    max_length: int | None = None
    only_stopped: bool = False
    near: float | None = None
    verify: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An answer with its question and row."""

    place: str
    row: Mapping[str, Any]
    question: str
    answer: str
    reason: str


def verdicts(candidates: Sequence[Candidate], filters: Filters, known: Sequence[str] = ()) -> list[str | None]:
    """For each candidate the first reason why it is dropped, or None if it is kept.

    Args:
        known: texts of which a kept answer must not be a near duplicate either.

    Raises:
        RecipeError: the verifier cannot be imported.
        DataError: the verifier raised.
    """
    verify = load_verifier(filters.verify) if filters.verify else None
    found = [_by_itself(candidate, filters, verify) for candidate in candidates]
    seen: set[tuple[str, str]] = set()
    for number, candidate in enumerate(candidates):
        pair = (candidate.question, candidate.answer.strip())
        if found[number] is None and pair in seen:
            found[number] = "duplicate"
        seen.add(pair)
    if filters.near is not None:
        _drop_near(candidates, found, filters.near, known)
    return found


def load_verifier(name: str) -> Verifier:
    """The function named `module:function`.

    Raises:
        RecipeError: it cannot be imported, or is not callable.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"The verifier {name!r} cannot be imported: {error}",
            fix="write it as module:function; the module is looked for in the current folder as well",
        ) from None
    if not callable(function):
        raise RecipeError(f"The verifier {name!r} is not a function.", fix="write it as module:function")
    return function


def _by_itself(candidate: Candidate, filters: Filters, verify: Verifier | None) -> str | None:
    if candidate.reason == "context":
        return "prompt longer than the model's context"
    if filters.only_stopped and candidate.reason not in ("stop", "stop_string"):
        return "cut before its end"
    length = len(candidate.answer.strip())
    if filters.min_length is not None and length < filters.min_length:
        return "empty" if not length else "too short"
    if filters.max_length is not None and length > filters.max_length:
        return "too long"
    return None if verify is None or _passes(verify, candidate) else "refused by the verifier"


def _passes(verify: Verifier, candidate: Candidate) -> bool:
    try:
        return bool(verify(candidate.row, candidate.answer))
    except Exception as error:  # a user's own code may raise anything
        raise DataError(
            f"{candidate.place}: the verifier raised {type(error).__name__}: {error}",
            fix="fix the verifier; answers made so far are kept, and the same command continues from them",
        ) from error


def _drop_near(candidates: Sequence[Candidate], found: list[str | None], least: float, known: Sequence[str]) -> None:
    """Marks answers that resemble a known text or an earlier kept answer."""
    from honed.data.mix.minhash import near_groups, signatures

    kept = [number for number, reason in enumerate(found) if reason is None]
    asked = [f"{candidates[n].question}\n{candidates[n].answer}" if not known else candidates[n].answer for n in kept]
    groups = near_groups(signatures([*known, *asked]), least=least).tolist()[len(known) :]
    for place, (number, group) in enumerate(zip(kept, groups, strict=True), start=len(known)):
        if group != place:
            found[number] = "near duplicate"
