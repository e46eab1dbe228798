"""What is counted before and after training."""

from __future__ import annotations

import pytest

from honed.errors import RecipeError
from honed.evaluate.before_after import Form, compare
from honed.generate.answer import Answer

THREE_LINES = Form(pattern="In short: .+\nWhy: .+|简答：.+\n原因：.+", says="two lines")


@pytest.mark.parametrize(
    ("answer", "follows"),
    [
        ("In short: yes\nWhy: so", True),
        ("简答：是\n原因：如此", True),
        ("  In short: yes\nWhy: so\n\n", True),
        ("Well. In short: yes\nWhy: so", False),
        ("In short: yes\nWhy: so\nTry: it", False),
        ("In short: \nWhy: so", False),
        ("In short: yes\n原因：如此", False),
        ("", False),
    ],
)
def test_the_whole_answer_has_to_match(answer: str, follows: bool) -> None:
    assert THREE_LINES.follows(answer) is follows


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(RecipeError, match="not a regular expression"):
        Form(pattern="(")


def said(text: str, stopped: bool) -> Answer:
    return Answer(text=text, stopped=stopped, tokens=3)


BEFORE = [said("Hm", False), said("In short: a\nWhy: b", False)]
AFTER = [said("In short: c\nWhy: d", True), said("e", True)]


def test_counts_and_rows() -> None:
    found = compare(["q", "r"], BEFORE, AFTER, THREE_LINES)
    assert found["before"] == {"of": 2, "stopped": 0, "followed_form": 1}
    assert found["after"] == {"of": 2, "stopped": 2, "followed_form": 1}
    assert found["rule"] == "two lines"
    assert found["answers"][1] == {
        "prompt": "r",
        "before": "In short: a\nWhy: b",
        "before_stopped": False,
        "before_follows": True,
        "after": "e",
        "after_stopped": True,
        "after_follows": False,
    }


def test_without_a_form_nothing_is_said_of_it() -> None:
    found = compare(["q", "r"], BEFORE, AFTER, None)
    assert found["after"] == {"of": 2, "stopped": 2}
    assert found["rule"] == ""
    assert not any(key.endswith("follows") for row in found["answers"] for key in row)


def test_a_form_without_words_is_named_by_its_pattern() -> None:
    assert compare(["q", "r"], BEFORE, AFTER, Form(pattern=".+"))["rule"] == ".+"


def test_questions_and_answers_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare(["q"], BEFORE, AFTER, None)
