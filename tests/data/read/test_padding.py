"""Keys that Arrow adds to tools and calls are not trained: rows of a table read like the same rows as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.data.read.padding import padded_columns, without_padding
from honed.data.read.sources import read_rows, shards, unread_rows


def row(name: str, **arguments: Any) -> dict[str, Any]:
    kinds = {key: {"type": type(value).__name__} for key, value in arguments.items()}
    tool = {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": kinds}}}
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    asked = {"role": "user", "content": "why"}
    return {"messages": [asked, {"role": "assistant", "content": "so", "tool_calls": [call]}], "tools": [tool]}


ROWS = [row("weather", city="Rome", day=1), row("sum", numbers=[1, 2]), row("weather", city="Oslo")]


def in_each_kind_of_table(folder: Path) -> list[Any]:
    from pyarrow import feather, parquet

    table = pa.Table.from_pylist(ROWS)
    parquet.write_table(table, folder / "rows.parquet")
    feather.write_feather(table, folder / "rows.arrow")
    return [str(folder / "rows.parquet"), str(folder / "rows.arrow")]


def as_data_sets() -> list[Any]:
    datasets = pytest.importorskip("datasets", reason="datasets in memory need it: pip install datasets")
    whole = datasets.Dataset.from_list(ROWS)
    return [whole, whole.to_iterable_dataset(), whole.with_format("numpy")]


@pytest.mark.parametrize("kind", ["files", "datasets"])
def test_tables_read_like_json_lines(kind: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    expected = [row for _, row in read_rows(str(tmp_path / "rows.jsonl"))]
    for data in in_each_kind_of_table(tmp_path) if kind == "files" else as_data_sets():
        assert [row for _, row in read_rows(data)] == expected
        assert [read()[1] for read in unread_rows(data)] == expected
        assert [row for read in shards(data, streaming=True) for _, row in read()] == expected


def test_padding_is_what_is_left_out(tmp_path: Path) -> None:
    """Arrow's own answer holds the foreign keys."""
    padded = pa.Table.from_pylist(ROWS).to_pylist()[0]["tools"][0]["function"]["parameters"]["properties"]
    assert padded == {"city": {"type": "str"}, "day": {"type": "int"}, "numbers": None}
    [read, *_] = [row for _, row in read_rows(in_each_kind_of_table(tmp_path)[0])]
    assert "numbers" not in json.dumps(read)


def test_columns_without_structs_in_structs_stay_as_they_are() -> None:
    plain = [{"text": None, "messages": [{"role": "user", "content": None}], "n": [None, 1]}]
    assert padded_columns(pa.Table.from_pylist(plain).schema) == []
    nested = [{"meta": {"a": {"b": 1}, "c": None, "d": [None, {"e": None}]}, "text": None}]
    assert padded_columns(pa.Table.from_pylist(nested).schema) == ["meta"]
    assert without_padding(nested[0], ["meta"]) == {"meta": {"a": {"b": 1}, "d": [None, {}]}, "text": None}


VALUES = st.recursive(
    st.integers(0, 9),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1) | st.lists(inner, min_size=1),
)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.dictionaries(st.sampled_from("ab"), VALUES, min_size=1), min_size=1, max_size=3))
def test_what_holds_no_null_comes_back_from_arrow(rows: list[dict[str, Any]]) -> None:
    packed = [{"column": {"inner": row}} for row in rows]
    try:
        table = pa.Table.from_pylist(packed)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # values of different kinds under one key: no table holds them
        return
    assert [without_padding(row, padded_columns(table.schema)) for row in table.to_pylist()] == packed


STRUCT = pa.struct([("a", pa.int8())])


@pytest.mark.parametrize(
    ("kind", "padded"),
    [
        (pa.list_(STRUCT), False),
        (pa.large_list(pa.struct([("b", pa.list_(STRUCT, 2))])), True),
        (pa.map_(pa.string(), pa.string()), False),
        (pa.dictionary(pa.int32(), pa.string()), False),
        (pa.null(), False),
    ],
)
def test_every_kind_of_column_can_be_asked(kind: Any, padded: bool) -> None:
    assert padded_columns(pa.schema([("column", kind)])) == ["column"] * padded
