"""Files of every kind, good and broken, and datasets in memory."""

from __future__ import annotations

import copy
import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from honed.data.example import RowError
from honed.data.read import files as data_files
from honed.data.read.sources import files_of, read_rows, shards, starter_file
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


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b"", r"is empty"),
        ("a.jsonl", b"\xef\xbb\xbf \n\n", r"holds no rows"),
        ("a.jsonl", b"\n\x1f\x8b\x08", r"a\.jsonl:2: not UTF-8 text \(byte 2\)"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), r"a\.jsonl is UTF-16 text.\n.*iconv -f UTF-16 -t UTF-8 a.jsonl >"),
        ("a.jsonl", '{"a": 1}'.encode("utf-32"), r"a\.jsonl is UTF-32 text.\n.*iconv -f UTF-32 "),
        ("a.json.gz", gzip.compress("[1]".encode("utf-16"), mtime=0), r"\(unpacked\): iconv -f UTF-16 -t UTF-8 a.json"),
        ("a.tsv", "a\tb\n1\t2\n".encode("utf-16"), r"a\.tsv is UTF-16 text"),
        ("a.json", b"[1, 2", r"not valid JSON: .*line 1 column 6"),
        ("a.json", b"[" * 100_000, r"not valid JSON"),
        ("a.jsonl", b"[\n1,\n2", r"a.jsonl: not valid JSON: .*line 3"),
        ("a.json", b" []\n", r"holds an empty list"),
        ("a.parquet", b"PAR1", r"not a readable parquet file"),
        ("a.arrow", b"nothing", r"not a readable arrow file"),
        ("a.csv", b'a,b\n1,2,3\n', r"not a readable csv file"),
        ("a.csv", b'prompt;completion\na;b, c\n', r"separate columns by commas"),
        ("a.csv", b'prompt,completion,completion\na,b,c\n', r"two columns named 'completion'"),
        ("a.jsonl", LFS_POINTER, r"pointer of Git LFS.*\n.*git lfs pull"),
        ("a.parquet", LFS_POINTER, r"pointer of Git LFS"),
        ("a.jsonl.gz", LFS_POINTER, r"pointer of Git LFS"),
        ("a.txt", b"once upon a time", r"a.txt is not a file of rows"),
        ("a.xlsx", b"PK\x03\x04", r"a.xlsx is not a file of rows"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        list(read_rows(path))
    assert "fix: " in str(caught.value)


def test_columns_of_one_name_are_refused_where_rows_could_hold_but_one(tmp_path: Path) -> None:
    """Empty names, as of a table with an index and spare commas, are of no column that is read."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table([["a"], ["b"], ["c"]], names=["prompt", "completion", "completion"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns named 'completion'"):
        list(read_rows(tmp_path / "a.parquet"))
    (tmp_path / "a.csv").write_text("prompt,completion,,\na,b,,\n")
    assert [row["completion"] for _, row in read_rows(tmp_path / "a.csv")] == ["b"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="a pipe or a device"):
        list(read_rows(tmp_path / "a.jsonl"))


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


def test_a_data_frame_is_refused() -> None:
    frame = pytest.importorskip("pandas").DataFrame({"text": ["a", "b"]})
    with pytest.raises(DataError, match=r"DataFrame is no list of rows\.\n.*df\.to_dict\('records'\)"):
        list(read_rows(frame))
    assert [row for _, row in read_rows(frame.to_dict("records"))] == [{"text": "a"}, {"text": "b"}]


def test_a_folder_gives_its_data_files_in_order(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder that holds no data files"):
        list(read_rows(tmp_path))
    for name in ("b/1.jsonl", "a.json", "c.jsonl.gz", ".hidden/a.jsonl", "notes.md"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        content = json.dumps({"text": name}).encode()
        file.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert [row["text"] for _, row in read_rows(tmp_path)] == ["a.json", "b/1.jsonl", "c.jsonl.gz"]


def test_a_pattern_gives_the_files_that_match_in_order(tmp_path: Path) -> None:
    for name in ("2.jsonl", "1.jsonl", "3.json"):
        (tmp_path / name).write_bytes(lines([{"text": name}]))
    assert [row["text"] for _, row in read_rows(f"{tmp_path}/*.jsonl")] == ["1.jsonl", "2.jsonl"]
    assert [row["text"] for _, row in read_rows([f"{tmp_path}/[23].*"])] == ["2.jsonl", "3.json"]
    with pytest.raises(DataError, match=r"No file matches .*\*\.csv"):
        list(read_rows(f"{tmp_path}/*.csv"))


def packed(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    import pyarrow as pa

    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    first, second = lines(ROWS) + b"\n", lines([{"text": "z"}])
    path.write_bytes(packed(first, suffix) + packed(second, suffix))  # as `cat a.gz b.gz` gives it
    assert found(path) == list(enumerate([*ROWS, {"text": "z"}], start=1))
    path.write_bytes(packed(first, suffix)[:-9])
    with pytest.raises(DataError, match=r"a\.jsonl\.\w+ cannot be read"):
        list(read_rows(path))
    path.write_bytes(b"plain text, not packed")
    with pytest.raises(DataError, match=r"a\.jsonl\.\w+ cannot be read: .*\n.*re-make"):
        list(read_rows(path))
    table = tmp_path / f"b.csv{suffix}"
    table.write_bytes(packed(b"text\nwhy\n", suffix))
    assert found(table) == [(1, {"text": "why"})]


def test_long_lines_and_control_characters(tmp_path: Path) -> None:
    path, long = tmp_path / "a.jsonl", "x" * 10_000_000
    path.write_bytes(b'{"text": "a\x00b"}\r\n{"text": "a\\u0000b"}\r\n' + json.dumps({"text": long}).encode())
    texts = [row["text"] for _, row in read_rows(path)]
    assert texts[:2] == ["a\0b"] * 2 and texts[2] == long


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "csv"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "_CSV_BLOCK", 1 << 14)  # Arrow reads some blocks ahead

    def peak(copies: int) -> int:
        path = write_big(tmp_path / f"{copies}.{kind}", copies)
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_rows(path)) == 500 * copies
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # imports
    # five copies may be smaller than what gzip reads at a time (Python 3.12: 128 KB); fifty are 25 MB
    # ten times the rows; Arrow's threads read ahead by as many blocks as they find time for
    assert peak(50) <= 1.5 * peak(5) + (1 << 18)


def write_big(path: Path, copies: int) -> Path:
    import pyarrow as pa
    from pyarrow import csv, parquet

    rows = [{"text": f"{n} " * 200} for n in range(500)]
    if path.suffix in (".parquet", ".csv"):
        table = pa.Table.from_pylist(rows * copies)
        if path.suffix == ".csv":
            csv.write_csv(table, path)
        else:
            parquet.write_table(table, path, row_group_size=500)
        return path
    content = (lines(rows) + b"\n") * copies
    path.write_bytes(content if path.suffix == ".jsonl" else packed(content, path.suffix))
    return path


def test_feather_and_tab_separated_files(tmp_path: Path) -> None:
    import pyarrow as pa

    table, path = pa.Table.from_pylist(ROWS), tmp_path / "a.arrow"
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    assert found(path) == list(enumerate(ROWS, start=1))
    (tmp_path / "a.tsv").write_text("prompt\tcompletion\na, b\tc\n")
    assert found(tmp_path / "a.tsv") == [(1, {"prompt": "a, b", "completion": "c"})]


def test_what_datasets_saved(tmp_path: Path) -> None:
    import datasets

    split = datasets.Dataset.from_list(ROWS)
    split.save_to_disk(tmp_path / "one")
    assert found(tmp_path / "one") == list(enumerate(ROWS, start=1))
    both = datasets.DatasetDict({"train": split, "test": split})
    both.save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match=r"splits train, test\.\n.*both/train"):
        list(read_rows(tmp_path / "both"))
    with pytest.raises(DataError, match=r"DatasetDict holds several splits: 'train', 'test'\.\n.*data\['train'\]"):
        list(read_rows(both))
    datasets.DatasetDict({"only": split}).save_to_disk(tmp_path / "only")
    lazy = datasets.IterableDatasetDict({"only": split.to_iterable_dataset()})
    for single in (tmp_path / "only", datasets.DatasetDict({"only": split}), lazy):
        assert found(single) == list(enumerate(ROWS, start=1))
    assert files_of(tmp_path / "only") == files_of(tmp_path / "only" / "only")


def test_a_data_set_with_a_format_gives_plain_values() -> None:
    import datasets

    data = datasets.Dataset.from_list([{"input_ids": [1, 2]}]).with_format("numpy")
    assert found(data) == [(1, {"input_ids": [1, 2]})]
    assert data.format["type"] == "numpy"


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("me/data", ("me/data", None, "train")),
        ("me/data:test", ("me/data", None, "test")),
        ("me/data@en:train[:5%]", ("me/data", "en", "train[:5%]")),
        ("me/da.ta-1@en", ("me/da.ta-1", "en", "train")),
    ],
)
def test_names_of_the_hub(name: str, asked: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(hub_id: str, config: str | None, *, split: str, streaming: bool) -> list[Any]:
        return [(hub_id, config, split, streaming)]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("honed.data.read.sources.ask_for_dataset", lambda hub_id: None)
    assert [(str(source), row) for source, row in read_rows(name)] == [(f"{name}:1", (*asked, False))]
    [streamed] = shards(name, streaming=True)
    assert [row for _, row in streamed()] == [(*asked, True)]


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


def test_the_files_that_data_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json"):
        (tmp_path / name).touch()
    both = [tmp_path / "a.json", tmp_path / "b.jsonl"]
    assert files_of(tmp_path) == both == files_of(str(tmp_path / "*.json*"))
    assert files_of(["starter", tmp_path]) == [starter_file("train.jsonl"), *both]
    assert [files_of(data) for data in ("me/data", [tmp_path, "me/data"], [], [{"text": "a"}], 5)] == [None] * 5


def test_lines_that_cannot_be_parsed_are_rows_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = b'{"text": "one more row"}'
    path.write_bytes(b"\n".join([good, b'{"text": ', b"", good + b",", b'{"text": "caf\xe9"}', b"[" * 100_000, good]))
    rows = list(read_rows(path))
    assert [(source.row, row.reason) for source, row in rows if isinstance(row, RowError)] == [
        (2, "not JSON"), (4, "not JSON"), (5, "not UTF-8 text"), (6, "not JSON"),
    ]  # fmt: skip
    assert [source.row for source, row in rows if row == {"text": "one more row"}] == [1, 7]
    details = [row.detail for _, row in rows if isinstance(row, RowError)]
    assert details[0] == """Expecting value (character 11): '{"text":'""" and "Extra data (character 25)" in details[1]
    assert details[2] == f"byte {path.read_bytes().index(0xE9)} of the file"


@pytest.mark.parametrize("content", [json.dumps(ROWS, indent=1), json.dumps(ROWS), "\n" + json.dumps(ROWS)])
def test_one_list_in_a_file_for_lines(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    assert found(path) == [(1, ROWS[0]), (2, ROWS[1]), (3, ROWS[2])]


def test_lists_on_lines_are_no_list_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("[1, 2]\n[3]\n")
    assert found(path) == [(1, [1, 2]), (2, [3])]
