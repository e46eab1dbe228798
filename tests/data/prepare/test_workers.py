"""Several processes give what one gives: the same tokens, ledger and errors."""

from __future__ import annotations

import gc
import gzip
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from honed.data.ledger import Ledger
from honed.data.prepare import reader, workers
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import Prepared, prepare
from honed.errors import DataError

pytestmark = pytest.mark.skipif(not workers.can_fork(), reason="processes cannot be forked safely here")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """2,700 rows: a text, now and then a row that cannot be used, one too long, and a column that nothing reads."""
    rows: list[dict[str, Any]] = [{"text": f"row {n} of many", "extra": n} for n in range(2700)]
    rows[7], rows[1500], rows[2600] = {"text": 3}, {"nothing": "here"}, {"text": "long " * 300}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def made(file: Path, tokenizer: Any, number: int, **options: Any) -> Prepared:
    return prepare(str(file), tokenizer, PrepareOptions(max_length=64, **options), workers=number)


def same(one: Prepared, many: Prepared) -> None:
    assert np.array_equal(one.rows.table.input_ids, many.rows.table.input_ids)
    assert np.array_equal(one.rows.table.weights, many.rows.table.weights)
    assert np.array_equal(one.rows.table.starts, many.rows.table.starts)
    assert one.ledger.as_dict() == many.ledger.as_dict()
    assert one.stop_ids == many.stop_ids


@pytest.mark.parametrize("number", [2, 3, 5])
def test_the_same_comes_out(file: Path, tiny_tokenizer: Any, number: int) -> None:
    one = made(file, tiny_tokenizer, 1, bad_rows="drop", overlong="truncate")
    same(one, made(file, tiny_tokenizer, number, bad_rows="drop", overlong="truncate"))


LINES = st.sampled_from(
    [b'{"text": "some words"}', b'{"text": "more", "extra": 1}', b'{"text": "long words %s"}' % (b"on and " * 40),
     b'{"text": "a\xe2\x80\xa8b"}', b'{"text": 5}', b'{"nothing": 1}', b'{"text": ""}', b"", b" \t ", b'{"text": ',
     b"\xff", b"[]"]
)  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The end of its name, and what is in it."""
    ending = draw(st.sampled_from([b"\n", b"\r\n"]))
    sound = st.sampled_from([b'{"text": "fine"}', b'{"text": "fine as well", "more": 2}'])
    lines = draw(st.lists(st.one_of(sound, sound, sound, LINES), max_size=14))
    content = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + ending.join(lines) + draw(st.sampled_from([b"", ending]))
    packing = draw(st.sampled_from(["", "", "gz", "zst", "broken.gz", "list"]))
    if packing == "gz":
        return ".jsonl.gz", gzip.compress(content)
    if packing == "broken.gz":
        return ".jsonl.gz", gzip.compress(content)[:-6]
    if packing == "zst":
        return ".jsonl.zst", pa.compress(content, codec="zstd", asbytes=True)
    return (".json", b"[" + b",\n".join(lines) + b"]") if packing == "list" else (".jsonl", content)


def outcome(names: list[str], tokenizer: Any, number: int, options: dict[str, Any]) -> Any:
    try:
        made = prepare(names, tokenizer, PrepareOptions(max_length=32, **options), workers=number)
    except DataError as error:
        return str(error)
    table = made.rows.table
    return table.input_ids.tolist(), table.weights.tolist(), table.starts.tolist(), made.ledger.as_dict()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(files(), min_size=1, max_size=3), st.integers(2, 4), st.sampled_from(["drop", "error"]))
def test_odd_files_give_the_same(
    tmp_path: Path, tiny_tokenizer: Any, contents: list[tuple[str, bytes]], number: int, bad_rows: str
) -> None:
    names = []
    for place, (ending, content) in enumerate(contents):
        names.append(str(tmp_path / f"{place}{ending}"))
        Path(names[-1]).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "ROWS_AT_A_TIME", 3)
        patch.setattr(reader, "ROWS_AT_A_TIME", 3)
        options = {"bad_rows": bad_rows, "overlong": "truncate"}
        assert outcome(names, tiny_tokenizer, number, options) == outcome(names, tiny_tokenizer, 1, options)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "tsv", "dataset", "list"])
def test_tables_give_the_same(kind: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    rows = [{"text": f"row {n} of\nmany", "extra": str(n)} for n in range(3300)]
    table, path = pa.Table.from_pylist(rows), tmp_path / f"rows.{kind}"
    data: Any = str(path)
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=700)
    elif kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=1300)
    elif kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        path.write_text(
            "".join(f'"{row["text"]}"{mark}{row["extra"]}\n' for row in [{"text": "text", "extra": "extra"}, *rows])
        )
    else:
        data = Dataset.from_list(rows).with_format("numpy") if kind == "dataset" else rows
    one, two = (prepare(data, tiny_tokenizer, PrepareOptions(), workers=number) for number in (1, 2))
    assert one.ledger.rows_trained == 3300
    same(one, two)


@given(st.integers(1, 5), st.lists(st.integers(0, 4), max_size=200))
def test_each_place_is_taken_once(number: int, asking: list[int]) -> None:
    places, got = workers._Places(number), [list[int]() for _ in range(number)]
    for who in asking:
        got[who % number].append(places.next(who % number))
    end = max((own[-1] for own in got if own), default=0)
    for who in range(number):  # all go on until none is left before the end
        while not got[who] or got[who][-1] < end:
            got[who].append(places.next(who))
    taken = [place for own in got for place in own]
    assert all(own == sorted(own) for own in got) and len(set(taken)) == len(taken)
    assert set(range(end)) <= set(taken)


def test_errors_are_the_same(file: Path, tiny_tokenizer: Any) -> None:
    problems = []
    for number in (1, 2):
        with pytest.raises(DataError) as caught:
            made(file, tiny_tokenizer, number)
        problems.append(str(caught.value))
    assert problems[0] == problems[1]
    with pytest.raises(DataError, match="more than max_length"):
        made(file, tiny_tokenizer, 2, bad_rows="drop", overlong="error")


def test_a_broken_file_is_named(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "fine"}\n' * 1200 + '{"text": \n', encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.jsonl:1201: not JSON"):
        prepare(str(path), tiny_tokenizer, PrepareOptions(), workers=2)


def test_a_process_that_dies_is_an_error(file: Path, tiny_tokenizer: Any) -> None:
    parent = os.getpid()

    def dies(row: dict[str, Any]) -> str:
        if row.get("extra") == 1700 and os.getpid() != parent:
            os._exit(9)
        return "fine"

    with pytest.raises(DataError, match=r"died \(exit code 9\)"):
        prepare(str(file), tiny_tokenizer, PrepareOptions(), formatting_func=dies, workers=2)


def left_over() -> tuple[int, int]:
    """Open files of this process, and its children."""
    gc.collect()  # files of readers that earlier tests dropped
    return len(list(Path("/proc/self/fd").iterdir())), len(multiprocessing.active_children())


def test_a_killed_process_and_ctrl_c_leave_nothing(file: Path, tiny_tokenizer: Any) -> None:
    parent, before = os.getpid(), left_over()

    def is_killed(row: dict[str, Any]) -> str:
        if row.get("extra") == 1700 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return "fine"

    def is_stopped(row: dict[str, Any]) -> str:
        if row.get("extra") == 1501 and os.getpid() != parent:
            os.kill(parent, signal.SIGINT)
        return "fine"

    with pytest.raises(DataError, match=r"exit code -9"):
        prepare(str(file), tiny_tokenizer, PrepareOptions(), formatting_func=is_killed, workers=3)
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have it ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            prepare(str(file), tiny_tokenizer, PrepareOptions(), formatting_func=is_stopped, workers=2)
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert left_over() == before


def test_the_first_error_is_told_whichever_process_meets_one(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "two.jsonl"
    lines = ['{"text": "fine"}'] * 4000
    lines[1500] = lines[2500] = json.dumps({"text": "far too long " * 20})
    path.write_text("\n".join(lines), encoding="utf-8")
    for number in (1, 2, 3):
        with pytest.raises(DataError, match=r"two\.jsonl:1501: \d+ tokens, more than max_length 32"):
            prepare(str(path), tiny_tokenizer, PrepareOptions(max_length=32, overlong="error"), workers=number)


def test_rows_that_are_no_json_are_told_in_order(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "two.jsonl"
    lines = ['{"text": "fine"}'] * 4000
    lines[1500] = lines[2500] = '{"text": '
    path.write_text("\n".join(lines), encoding="utf-8")
    for number in (1, 2, 3):
        with pytest.raises(DataError, match=r"(?s)two\.jsonl:1501: not JSON.*two\.jsonl:2501: not JSON"):
            prepare(str(path), tiny_tokenizer, PrepareOptions(), workers=number)


def test_rows_that_can_be_read_once_are_read_here(tiny_tokenizer: Any) -> None:
    rows = ({"text": f"row {n}"} for n in range(1500))
    assert prepare(rows, tiny_tokenizer, PrepareOptions(), workers=2).ledger.rows_trained == 1500


def test_ledgers_add_up() -> None:
    from honed.data.example import Source

    whole, parts = Ledger(), [Ledger(), Ledger()]
    for n in range(10):
        for ledger in (whole, parts[n // 5]):
            ledger.rows_in += 1
            ledger.drop(Source(file="f", row=n), "bad" if n % 2 else "worse", str(n))
    total = Ledger()
    for part in parts:
        total.add(part)
    assert total == whole
