"""Prepared rows read by columns, beside what `datasets` answers for the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from honed.data.batch.table import PackedRows, TokenTable
from honed.data.encode.render import Rendered
from honed.data.example import Source

ROWS = [[0, 1], [2]]
EXPECTED = [
    {
        "input_ids": [5, 6, 7, 8, 9],
        "labels": [-100, 6, -100, 8, 9],
        "position_ids": [0, 1, 0, 1, 2],
        "seq_lengths": [2, 3],
    },
    {"input_ids": [1], "labels": [-100], "position_ids": [0], "seq_lengths": [1]},
]


@pytest.fixture
def rows() -> PackedRows:
    documents = [([5, 6], [0, 1]), ([7, 8, 9], [0, 1, 0.5]), ([1], [0])]
    made = [
        Rendered(
            input_ids=np.array(i, dtype=np.int32), weights=np.array(w, dtype=np.float32), source=Source(file="", row=1)
        )
        for i, w in documents
    ]
    return PackedRows(TokenTable(made), ROWS)


def test_a_row_is_a_mapping(rows: PackedRows) -> None:
    for number in (0, 1, -1, np.int64(1)):
        row: Any = rows[number]
        assert dict(row) == EXPECTED[number]
        assert list(row) == list(row.keys()) == list(EXPECTED[0])
        assert "labels" in row and "text" not in row
        assert row.get("text") is None
    with pytest.raises(KeyError, match="a prepared row has input_ids, labels"):
        rows[0]["text"]
    with pytest.raises(IndexError):
        rows[2]


def test_a_data_set_answers_as_datasets_does(rows: PackedRows) -> None:
    datasets = pytest.importorskip("datasets")
    peer = datasets.Dataset.from_list(EXPECTED)
    assert list(rows.column_names) == peer.column_names
    assert len(rows) == len(peer)
    for index in (slice(None), slice(0, 1), slice(-1, None), [1, 0], range(2)):
        assert rows[index] == peer[index]
    assert rows["labels"] == list(peer["labels"])
    assert [dict(row) for row in rows] == list(peer)  # type: ignore[attr-defined]
    with pytest.raises(KeyError, match="prepared rows have"):
        rows["text"]
