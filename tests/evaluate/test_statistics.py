"""Ratios and their bootstrap intervals."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.evaluate.statistics import Ratio, interval, resampled_sums

VALUES = st.lists(st.floats(-10, 10), min_size=2, max_size=12)


def ratio(sums: list[float], weights: list[float] | None = None) -> Ratio:
    return Ratio(sums_N=np.array(sums, dtype=float), weights_N=np.array(weights or [1.0] * len(sums)))


def test_a_ratio_of_sums_is_no_mean_of_ratios() -> None:
    assert ratio([2.0, 9.0], [1.0, 3.0]).value == 11 / 4
    assert np.isnan(ratio([0.0], [0.0]).value)


def test_units_without_a_value_have_no_say() -> None:
    assert Ratio.of([True, None, False, None]).value == 0.5
    assert Ratio.of([2, None, 4]).value == 3.0


def test_draws_are_with_replacement() -> None:
    """Of two units the draws are aa, ab, ba, bb: the sum of 0 and 1 is 0, 1 or 2 with 1/4, 1/2, 1/4."""
    sums_R = resampled_sums(np.array([[0.0], [1.0]]), resamples=20_000, seed=3)[:, 0]
    shares = [(sums_R == total).mean() for total in (0, 1, 2)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.015)


def test_draws_do_not_depend_on_how_many_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(7, 2))
    whole = resampled_sums(values, resamples=50, seed=1)
    monkeypatch.setattr("honed.evaluate.statistics.COUNTS_AT_A_TIME", 20)
    assert np.array_equal(resampled_sums(values, resamples=50, seed=1), whole)


@given(values=VALUES, seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_mean_lies_between_the_least_and_the_greatest(values: list[float], seed: int) -> None:
    found = interval(ratio(values), resamples=50, seed=seed)
    assert found is not None
    low, high = found
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert interval(ratio(values), resamples=50, seed=seed) == found


@given(pairs=st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=12))
@settings(max_examples=40, deadline=None)
def test_models_exchanged_turn_the_interval_round(pairs: list[tuple[float, float]]) -> None:
    a, b = (ratio(list(values)) for values in zip(*pairs, strict=True))
    one, other = interval(a, b, resamples=50), interval(b, a, resamples=50)
    assert one is not None and other is not None
    assert one == pytest.approx((-other[1], -other[0]), abs=1e-9)


def test_the_interval_is_that_of_drawing_row_by_row() -> None:
    """The same bootstrap written out: rows drawn one at a time, by other random numbers, both models on each draw."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 30, size=25).astype(float)
    base, tuned = tokens * rng.normal(2.0, 0.5, size=25), tokens * rng.normal(1.7, 0.5, size=25)
    draws, differences = random.Random(2), []
    for _ in range(4000):
        rows = [draws.randrange(25) for _ in range(25)]
        losses = [sum(side[n] for n in rows) / sum(tokens[n] for n in rows) for side in (tuned, base)]
        differences.append(losses[0] - losses[1])
    differences.sort()
    found = interval(
        Ratio(sums_N=tuned, weights_N=tokens), Ratio(sums_N=base, weights_N=tokens), resamples=4000, seed=3
    )
    width = differences[3899] - differences[99]
    assert found == pytest.approx((differences[99], differences[3899]), abs=0.06 * width)


def test_what_is_hard_for_both_cancels() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200) * 5
    base, tuned = hard + rng.normal(size=200) * 0.1, hard + rng.normal(size=200) * 0.1 - 0.5
    found = interval(ratio(list(tuned)), ratio(list(base)))
    alone = interval(ratio(list(tuned)))
    assert found is not None and alone is not None
    assert -0.55 < found[0] < found[1] < -0.45
    assert (found[1] - found[0]) * 20 < alone[1] - alone[0]


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Ratios of 60 rows with 1 to 20 tokens each; the truth is known because the noise has mean 0."""
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        tokens = rng.integers(1, 21, size=60).astype(float)
        base = tokens * (2.0 + rng.normal(size=60))
        tuned = base + tokens * (-0.3 + 0.4 * rng.normal(size=60))
        found = interval(
            Ratio(sums_N=tuned, weights_N=tokens), Ratio(sums_N=base, weights_N=tokens), resamples=300, seed=trial
        )
        assert found is not None
        covered += found[0] <= -0.3 <= found[1]
    assert 0.90 <= covered / 300 <= 0.98  # nominal 0.95


def test_one_unit_has_no_interval() -> None:
    assert interval(ratio([1.0])) is None
    assert interval(ratio([1.0, 5.0], [1.0, 0.0])) is None


def test_sides_with_units_of_their_own() -> None:
    """A unit that only one side has stays in; draws that leave a side empty are not counted."""
    found = interval(ratio([1.0, 0.0, 3.0], [1.0, 0.0, 1.0]), ratio([0.0, 2.0, 2.0], [0.0, 1.0, 1.0]))
    assert found is not None and found[0] >= -1.0 and found[1] <= 1.0
    assert interval(ratio([1.0, 0.0], [1.0, 0.0]), ratio([0.0, 0.0], [0.0, 0.0])) is None
