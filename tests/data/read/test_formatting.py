"""Formatting functions in all the shapes that scripts have them, and what is said where one fails."""

from __future__ import annotations

from typing import Any

import pytest

from honed.data.example import RowError
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.read.formatting import Formatting
from honed.errors import DataError

ROWS = [{"question": f"why {n} and so on", "answer": "yes"} for n in range(3)]


def as_text(row: Any) -> Any:
    return f"Q: {row['question']} A: {row['answer']}"


def batched(batch: Any) -> Any:
    """As in TRL's old documentation; given a row, it walks along characters and ends in an IndexError."""
    return [f"Q: {batch['question'][i]} A: {batch['answer'][i]}" for i in range(len(batch["question"]))]


def batched_with_zip(batch: Any) -> Any:
    """Given a row, it pairs characters and does not fail."""
    return [f"Q: {question} A: {answer}" for question, answer in zip(batch["question"], batch["answer"], strict=False)]


@pytest.mark.parametrize("function", [as_text, batched, batched_with_zip])
def test_a_text_for_a_row_or_texts_for_a_batch(function: Any) -> None:
    formatting = Formatting(function, "body")
    assert list(map(formatting, ROWS)) == [{"body": f"Q: why {n} and so on A: yes"} for n in range(3)]
    assert ROWS[0] == {"question": "why 0 and so on", "answer": "yes"}


@pytest.mark.parametrize(
    ("result", "row"),
    [
        ("text", {"text": "text"}),
        ([{"role": "user", "content": "why"}], {"messages": [{"role": "user", "content": "why"}]}),
        (("why", "so"), {"prompt": "why", "completion": "so"}),
        ({"prompt": "why", "completion": "so"}, {"prompt": "why", "completion": "so"}),
    ],
)
def test_other_shapes(result: Any, row: Any) -> None:
    assert Formatting(lambda given: result)({"a": 1}) == row


def test_a_function_that_fails_names_the_row(tiny_tokenizer: Any) -> None:
    rows = [ROWS[0], {"question": "why"}]
    with pytest.raises(DataError, match="row:2: formatting_func failed: KeyError: 'answer'"):
        prepare(rows, tiny_tokenizer, PrepareOptions(), formatting_func=as_text)
    with pytest.raises(DataError, match="row:1: formatting_func failed: KeyError: 'answer'"):
        prepare(rows[1:], tiny_tokenizer, PrepareOptions(), formatting_func=batched)
    options = PrepareOptions(bad_rows="drop")
    ledger = prepare(rows, tiny_tokenizer, options, formatting_func=batched).ledger
    assert (ledger.rows_trained, ledger.rows_dropped) == (1, {"formatting_func failed": 1})


@pytest.mark.parametrize(
    ("function", "row", "problem"),
    [
        (lambda row: None, {"a": 1}, "returned NoneType: None"),
        (lambda row: ["a", "b"], {"a": 1}, r"returned list: \['a', 'b'\]"),
        (lambda row: [], {"a": 1}, r"returned list: \[\]"),
        (lambda row: 1 / 0, 5, "failed: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_trained(function: Any, row: Any, problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        Formatting(function)(row)


def test_a_batched_function_that_later_gives_several_texts() -> None:
    formatting = Formatting(lambda batch: ["a"] * len(batch["a"][0]) if isinstance(batch["a"], list) else ["x", "y"])
    assert formatting({"a": "1"}) == {"text": "a"}
    with pytest.raises(RowError, match=r"one text; returned \['a', 'a'\]"):
        formatting({"a": "12"})
