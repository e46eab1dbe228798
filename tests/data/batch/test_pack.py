"""Best-fit packing, held against a slow first-fit and against what no packing can beat."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.data.batch.pack import fill_rate, one_by_one, pack_best_fit, pack_wrapped
from honed.data.batch.table import TokenTable
from honed.data.prepare.prepare import assert_conserved

CAPACITY = 24
lengths_within = st.lists(st.integers(1, CAPACITY), max_size=40)


def slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The space left in each row of best-fit decreasing, by looking at every row for every document."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else capacity) - length)
    return sorted(spaces)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(lengths=lengths_within)
def test_best_fit(lengths: list[int]) -> None:
    rows = pack_best_fit(lengths, CAPACITY)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[document] for document in row) <= CAPACITY for row in rows)
    spaces = sorted(CAPACITY - sum(lengths[document] for document in row) for row in rows)
    assert spaces == slow_best_fit(lengths, CAPACITY)
    assert rows == sorted(map(sorted, rows)) == pack_best_fit(lengths, CAPACITY)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(cuts=st.lists(st.lists(st.integers(1, CAPACITY - 1), max_size=4, unique=True), max_size=10), draw=st.randoms())
def test_no_more_rows_than_the_theorem_allows(cuts: list[list[int]], draw: random.Random) -> None:
    """Full rows cut up, so that the best packing is known. Johnson (1973): at most 11/9 of it and 4 rows."""
    ends = [[0, *sorted(cut), CAPACITY] for cut in cuts]
    lengths = [b - a for row in ends for a, b in pairwise(row)]
    draw.shuffle(lengths)
    assert len(cuts) <= len(pack_best_fit(lengths, CAPACITY)) <= 11 / 9 * len(cuts) + 4


def test_the_picture_in_the_docstring() -> None:
    assert pack_best_fit([5, 3, 6, 2], 8) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("lengths", [[9], [8, 0], [-1]])
def test_lengths_that_fit_no_row(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"lengths must be in \[1, 8\]"):
        pack_best_fit(lengths, 8)


def test_one_by_one_and_fill_rate() -> None:
    assert one_by_one(3) == [[0], [1], [2]]
    assert fill_rate([5, 3, 6], [[0, 1], [2]], 8) == 14 / 16
    assert fill_rate([], [], 8) == 0.0


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 20))
def test_wrapped_rows_are_full_and_hold_every_token_in_order(lengths: list[int], capacity: int) -> None:
    starts = np.cumsum([0, *lengths])
    cuts, rows = pack_wrapped(starts, capacity)
    parts = np.diff(cuts)
    assert set(starts.tolist()) <= set(cuts.tolist()) and parts.min() >= 1 and cuts[-1] == sum(lengths)
    assert [part for row in rows for part in row] == list(range(len(parts)))
    fills = [int(sum(parts[part] for part in row)) for row in rows]
    assert fills[:-1] == [capacity] * (len(rows) - 1) and 0 < fills[-1] <= capacity


@pytest.mark.parametrize(
    ("rows", "trained", "says"),
    [
        ([[0, 2], [1]], 6, ""),
        ([[0, 2]], 6, "lost or repeated a document"),
        ([[0, 2], [1, 1]], 6, "lost or repeated a document"),
        ([[0, 2], [2]], 6, "lost or repeated a document"),
        ([[0, 2], [3]], 6, "lost or repeated a document"),
        ([], 6, "lost or repeated a document"),
        ([[0, 2], [1]], 7, "made 6 of 7 trained tokens"),
    ],
)
def test_what_packing_loses_is_noticed(rows: list[list[int]], trained: int, says: str) -> None:
    """Three documents of three tokens, two of them trained."""
    weights, ids = np.array([0, 1, 0.5] * 3, dtype=np.float32), np.zeros(9, dtype=np.int32)
    table = TokenTable.of(ids, weights, np.array([0, 3, 6, 9]))
    if not says:
        assert_conserved(rows, table, trained)
        return
    with pytest.raises(AssertionError, match=f"{says}; this is a bug in honed"):
        assert_conserved(rows, table, trained)
