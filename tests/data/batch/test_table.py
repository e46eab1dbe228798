"""Documents in flat arrays come out as they went in."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.data.batch.table import PackedRows, TokenTable
from honed.data.encode.render import Rendered
from honed.data.example import Source

documents_of = st.lists(
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=5), max_size=6
)


def rendered(pairs: list[tuple[int, float]]) -> Rendered:
    ids, weights = zip(*pairs, strict=True)
    return Rendered(
        input_ids=np.asarray(ids, dtype=np.int32),
        weights=np.asarray(weights, dtype=np.float32),
        source=Source(file="f", row=1),
    )


@settings(deadline=None, derandomize=True)
@given(documents=documents_of, data=st.data())
def test_rows_hold_their_documents(documents: list[list[tuple[int, float]]], data: st.DataObject) -> None:
    table = TokenTable([rendered(pairs) for pairs in documents])
    assert (len(table), table.lengths.tolist()) == (len(documents), [len(pairs) for pairs in documents])
    if not documents:
        return
    chosen = data.draw(st.lists(st.integers(0, len(documents) - 1), min_size=1, max_size=4))
    rows = PackedRows(table, [[0], chosen])
    row = rows[1]
    pairs = [pair for document in chosen for pair in documents[document]]
    assert len(rows) == 2
    assert list(zip(row.input_ids.tolist(), row.weights.tolist(), strict=True)) == pairs
    assert row.lengths == tuple(len(documents[document]) for document in chosen)
    assert (row.input_ids.dtype, row.weights.dtype) == (np.int32, np.float32)


def test_a_row_is_a_copy() -> None:
    table = TokenTable([rendered([(5, 1.0), (6, 1.0)])])
    table.row([0]).input_ids[:] = 0
    assert table.input_ids.tolist() == [5, 6]
