"""Measures side by side."""

from __future__ import annotations

import math

import pytest

from honed.evaluate.measure import Measure, compare_measures, direction, perplexity
from honed.evaluate.statistics import Ratio, interval


def measure(name: str, values: list[float | None]) -> Measure:
    return Measure(name=name, label=name, unit="share", ratio=Ratio.of(values), of=len(values))


def test_one_model_has_an_interval_of_its_value() -> None:
    one = measure("stops", [1.0, 0.0, 1.0])
    [found] = compare_measures([one], seed=2)
    assert (found.value, found.base, found.difference) == (pytest.approx(2 / 3), None, None)
    assert (found.low, found.high) == interval(one.ratio, seed=2)


def test_two_models_have_an_interval_of_the_difference() -> None:
    one, other = measure("stops", [1.0, 0.0, 1.0]), measure("stops", [0.0, 0.0, 1.0])
    [found] = compare_measures([one], [other], seed=2)
    assert found.difference == pytest.approx(1 / 3)
    assert (found.low, found.high) == interval(one.ratio, other.ratio, seed=2)


def test_the_same_model_differs_by_nothing() -> None:
    one = measure("loss", [1.5, 2.5, 9.0])
    [found] = compare_measures([one], [one])
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)


def test_different_measures_are_not_compared() -> None:
    with pytest.raises(ValueError, match="stops is compared with loss"):
        compare_measures([measure("stops", [1.0])], [measure("loss", [1.0])])


def test_directions() -> None:
    assert direction("loss.role.user") == "lower" and direction("json_schema") == "higher"
    assert direction("tokens") is None


def test_perplexity() -> None:
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(1e4) == math.inf and math.isnan(perplexity(math.nan))
