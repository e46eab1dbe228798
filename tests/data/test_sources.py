"""Files of every kind, good and broken, and data sets in memory."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from honed.data.sources import read_rows, starter_file
from honed.errors import DataError

ROWS = [{"text": "a"}, {"text": "b\u2028c"}, {"text": "答案\n🦊"}]


def found(data: Any) -> list[tuple[int, Any]]:
    return [(source.row, row) for source, row in read_rows(data)]


def lines(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return end.join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "content", "numbers"),
    [
        ("a.jsonl", lines(ROWS), [1, 2, 3]),
        ("a.jsonl", lines(ROWS) + b"\n", [1, 2, 3]),
        ("a.jsonl", b"\xef\xbb\xbf" + lines(ROWS, "\r\n") + b"\r\n", [1, 2, 3]),
        ("a.jsonl", b"\n \n" + lines(ROWS, "\n\n"), [3, 5, 7]),
        ("a.json", lines(ROWS), [1, 2, 3]),
        ("a.json", json.dumps(ROWS, indent=1).encode(), [1, 2, 3]),
        ("a.json", b"\xef\xbb\xbf\n" + json.dumps(ROWS).encode(), [1, 2, 3]),
        ("a.txt", lines(ROWS), [1, 2, 3]),
    ],
)
def test_json_files(tmp_path: Path, name: str, content: bytes, numbers: list[int]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert found(path) == list(zip(numbers, ROWS, strict=True))
    assert str(next(read_rows(str(path)))[0]) == f"{path}:{numbers[0]}"


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_arrow_files(tmp_path: Path, suffix: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"messages": [{"role": "user", "content": "why"}]}, {"messages": []}]
    path, table = tmp_path / f"a.{suffix}", pa.Table.from_pylist(rows)
    if suffix == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    assert found(path) == [(1, rows[0]), (2, rows[1])]


def test_cells_of_a_csv_file_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"a ""b""\nc",1\nNA,true\n2024-01-01,\n', encoding="utf-8-sig")
    pairs = [(row["prompt"], row["completion"]) for _, row in read_rows(path)]
    assert pairs == [('a "b"\nc', "1"), ("NA", "true"), ("2024-01-01", "")]


def test_csv_cells_of_several_lines_in_a_long_file(tmp_path: Path) -> None:
    """Longer than the block of 1 MiB that Arrow parses at a time."""
    path, cell = tmp_path / "a.csv", "one, two\n" * 100
    path.write_text("text\n" + f'"{cell}"\n' * 2000)
    assert [row["text"] for _, row in read_rows(path)] == [cell] * 2000


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2: this line is not JSON .*'\{\"a\":'"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: this line is not JSON"),
        ("a.jsonl", b"", r"is empty"),
        ("a.jsonl", b"\xef\xbb\xbf \n\n", r"holds no rows"),
        ("a.jsonl", b'{"a": 1}\n\x1f\x8b\x08', r"a\.jsonl:2: not UTF-8 text \(byte 10\)"),
        ("a.json", b"[1, 2", r"not valid JSON: .*line 1 column 6"),
        ("a.json", b"[" * 100_000, r"not valid JSON"),
        ("a.json", b" []\n", r"holds an empty list"),
        ("a.parquet", b"PAR1", r"not a readable parquet file"),
        ("a.arrow", b"nothing", r"not a readable arrow file"),
        ("a.csv", b'a,b\n1,2,3\n', r"not a readable csv file"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        list(read_rows(path))
    assert "fix: " in str(caught.value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("missing.jsonl", "missing.jsonl does not exist"),
        ("missing", "No such file: missing"),
        (["starter", "missing.jsonl"], "missing.jsonl does not exist"),
        ({"train": []}, "Cannot read rows from dict"),
        (5, "Cannot read rows from int"),
    ],
)
def test_what_holds_no_rows(data: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        list(read_rows(data))


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder, not a file"):
        list(read_rows(tmp_path))


def test_starter_rows_and_several_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROWS))
    starter = [json.loads(line) for line in starter_file("train.jsonl").read_text("utf-8").split("\n") if line]
    assert [row for _, row in read_rows("starter")] == starter
    both = list(read_rows([str(path), "starter"]))
    assert [row for _, row in both] == ROWS + starter
    assert [str(both[n][0]) for n in (2, 3)] == [f"{path}:3", f"{starter_file('train.jsonl')}:1"]


@pytest.mark.parametrize("kind", ["list", "generator", "dataset", "iterable dataset"])
def test_rows_in_memory_are_left_as_they_are(kind: str) -> None:
    import datasets

    rows = copy.deepcopy(ROWS)
    if kind == "generator":
        assert found(row for row in rows) == list(enumerate(ROWS, start=1))
        return
    data: Any = rows if kind == "list" else datasets.Dataset.from_list(rows)
    if kind == "iterable dataset":
        data = data.to_iterable_dataset()
    for _ in range(2):
        assert found(data) == list(enumerate(ROWS, start=1))
    assert rows == ROWS
