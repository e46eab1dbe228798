"""Several processes give what one gives: the same tokens, ledger and errors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from honed.data import workers
from honed.data.ledger import Ledger
from honed.data.prepare import Prepared, PrepareOptions, prepare
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


@pytest.mark.parametrize("number", [2, 3, 5])
def test_the_same_comes_out(file: Path, tiny_tokenizer: Any, number: int) -> None:
    one = made(file, tiny_tokenizer, 1, bad_rows="drop", overlong="truncate")
    many = made(file, tiny_tokenizer, number, bad_rows="drop", overlong="truncate")
    assert np.array_equal(one.rows.table.input_ids, many.rows.table.input_ids)
    assert np.array_equal(one.rows.table.weights, many.rows.table.weights)
    assert np.array_equal(one.rows.table.starts, many.rows.table.starts)
    assert one.ledger.as_dict() == many.ledger.as_dict()
    assert one.stop_ids == many.stop_ids


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
    def dies(row: dict[str, Any]) -> str:
        if row.get("extra") == 1700:
            os._exit(9)
        return "fine"

    with pytest.raises(DataError, match=r"ended by itself \(exit code 9\)"):
        prepare(str(file), tiny_tokenizer, PrepareOptions(), formatting_func=dies, workers=2)


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
