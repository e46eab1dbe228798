"""The same questions before and after training: how many answers end by themselves, and how many have the form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from honed.errors import RecipeError
from honed.generate.answer import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The required form of an answer: a regular expression that the whole answer must match."""

    pattern: str
    says: str = ""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise RecipeError(
                f"samples.form is not a regular expression: {error}", fix=f"check {self.pattern!r}"
            ) from None

    def follows(self, answer: str) -> bool:
        """Whether the answer, without surrounding whitespace, has the form."""
        return re.fullmatch(self.pattern, answer.strip()) is not None


def compare(
    prompts: Sequence[str], before: Sequence[Answer], after: Sequence[Answer], form: Form | None
) -> dict[str, Any]:
    """Counts and answers side by side, as stored in `samples.json`."""
    return {
        "before": _counts(before, form),
        "after": _counts(after, form),
        "rule": form.says or form.pattern if form else "",
        "answers": [_row(*item, form) for item in zip(prompts, before, after, strict=True)],
    }


def _counts(answers: Sequence[Answer], form: Form | None) -> dict[str, int]:
    counts = {"of": len(answers), "stopped": sum(answer.stopped for answer in answers)}
    if form is not None:
        counts["followed_form"] = sum(form.follows(answer.text) for answer in answers)
    return counts


def _row(prompt: str, before: Answer, after: Answer, form: Form | None) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": prompt}
    for name, answer in (("before", before), ("after", after)):
        row |= {name: answer.text, f"{name}_stopped": answer.stopped}
        if form is not None:
            row[f"{name}_follows"] = form.follows(answer.text)
    return row
