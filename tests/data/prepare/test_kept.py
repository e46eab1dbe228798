"""Rows in columns hold what the rows hold."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from honed.data.encode.render import Rendered, Turn
from honed.data.example import Source
from honed.data.ledger import Ledger
from honed.data.prepare.kept import KeptRow, KeptRows


@st.composite
def kept_rows(draw: st.DrawFn) -> list[KeptRow]:
    rows = []
    for number in range(draw(st.integers(0, 6))):
        source = Source(file=draw(st.sampled_from(["a", "b"])), row=number)
        views = []
        for _ in range(draw(st.integers(1, 3))):
            n = draw(st.integers(1, 4))
            ids = np.array(draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)), dtype=np.int32)
            turns = tuple(Turn(start=0, end=n, stop=int(ids[-1])) for _ in range(draw(st.integers(0, 2))))
            weights = np.linspace(0, 1, n, dtype=np.float32)
            views.append(Rendered(input_ids=ids, weights=weights, source=source, turns=turns))
        cut = draw(st.sampled_from([None, ("overlong", "9 tokens")]))
        rows.append(KeptRow(source=source, views=views, cut=cut))
    return rows


def tokens(rows: list[KeptRow]) -> list[int]:
    return [int(i) for row in rows for view in row.views for i in view.input_ids]


@given(kept_rows(), kept_rows(), st.data())
def test_columns_of_repeated_rows_are_those_of_the_rows(
    first: list[KeptRow], second: list[KeptRow], data: st.DataObject
) -> None:
    rows = first + second
    columns = KeptRows.joined([KeptRows.of(first), KeptRows.of(second)])
    times = np.array([data.draw(st.integers(0, 2)) for _ in rows], dtype=np.int64)
    expected = [row for row, n in zip(rows, times, strict=True) for _ in range(n)]
    found = columns.repeated(times)
    assert found.input_ids.tolist() == tokens(expected)
    assert len(found) == len(expected)
    assert [found.source(n) for n in range(len(found))] == [row.source for row in expected]
    assert found.cuts == {n: row.cut for n, row in enumerate(expected) if row.cut}
    assert found.lengths.tolist() == [len(view) for row in expected for view in row.views]
    assert found.stops.tolist() == [t.stop for row in expected for view in row.views for t in view.turns]
    assert np.array_equal(found.weights, KeptRows.of(expected).weights)


@given(kept_rows())
def test_counting_columns_is_counting_rows(rows: list[KeptRow]) -> None:
    one_by_one, together = Ledger(), Ledger()
    for row in rows:
        row.count(one_by_one)
    KeptRows.of(rows).count(together)
    assert together == one_by_one
