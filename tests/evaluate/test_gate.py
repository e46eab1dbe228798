"""Gates: how they are read, and what passes."""

from __future__ import annotations

import math

import pytest

from honed.errors import RecipeError
from honed.evaluate.gate import Rule, judge, read_gate
from honed.evaluate.measure import Compared


def compared(name: str, base: float | None, value: float) -> Compared:
    return Compared(name=name, label=name, unit="share", of=4, value=value, base=base)


def test_names_in_any_case() -> None:
    assert read_gate("LOSS=0.02, stops=-0.05,loss.role.user=0") == [
        Rule(name="loss", limit=0.02),
        Rule(name="stops", limit=-0.05),
        Rule(name="loss.role.user", limit=0.0),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no measure"),
        ("speed=1", "names no measure"),
        ("tokens=1", "names no measure"),  # neither direction is better
        ("loss", "names no measure"),
        ("loss=", "no finite number"),
        ("loss=nan", "no finite number"),
        ("loss=inf", "no finite number"),
        ("loss=-0.1", "asks for an improvement"),
        ("stops=0.1", "asks for an improvement"),
        ("repetition=-0.1", "asks for an improvement"),
        ("loss=0,Loss=1", "twice"),
    ],
)
def test_what_is_no_gate(text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        read_gate(text)


@pytest.mark.parametrize(
    ("gate", "base", "value", "passed"),
    [
        ("loss=0.02", 2.0, 2.03, True),  # 1.5% of the base
        ("loss=0.02", 2.0, 2.05, False),
        ("loss=0.02", 2.0, 1.0, True),
        ("loss=0", 2.0, 2.0, True),
        ("loss=0", 0.0, 0.0, True),
        ("loss=0.5", 0.0, 0.1, False),
        ("loss=0.02", 2.0, math.nan, False),
        ("loss=0.02", 2.0, math.inf, False),
        ("stops=-0.05", 0.5, 0.46, True),  # 4 points
        ("stops=-0.05", 0.5, 0.44, False),
        ("stops=-0.05", 0.5, 1.0, True),
        ("stops=0", 0.5, 0.49, False),
        ("repetition=0.1", 0.1, 0.15, True),
        ("repetition=0.1", 0.1, 0.25, False),
    ],
)
def test_verdicts(gate: str, base: float, value: float, passed: bool) -> None:
    rules = read_gate(gate)
    [verdict] = judge(rules, [compared("tasks", 1.0, 0.0), compared(rules[0].name, base, value)])
    assert verdict.passed is passed
    assert str(verdict).startswith("pass" if passed else "FAIL")


def test_a_model_without_a_value() -> None:
    [verdict] = judge(read_gate("distinct1=-0.1"), [compared("distinct1", 0.5, math.nan)])
    assert str(verdict) == "FAIL  distinct1 cannot be compared: it is no number for one of the models"


def test_a_measure_with_capitals_in_its_name() -> None:
    [verdict] = judge(read_gate("loss.source.A.jsonl=0"), [compared("loss.source.A.jsonl", 1.0, 2.0)])
    assert verdict.change == 1.0


def test_what_was_not_measured() -> None:
    with pytest.raises(RecipeError, match="form was not measured") as error:
        judge(read_gate("form=0"), [compared("loss", 1.0, 1.0), compared("tokens", 1.0, 1.0)])
    assert error.value.fix == "choose from: loss"


def test_one_model_alone() -> None:
    with pytest.raises(RecipeError, match="compares two models"):
        judge(read_gate("loss=0"), [compared("loss", None, 1.0)])
