"""What is counted while rows are read: columns that are not read, formats that are not chosen, rows that are bad."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from honed.data.lint.lint import check
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.prepare.stream import RowStream
from honed.errors import DataError

ROWS = [{"text": "why", "id": n, "url": "x"} if n % 2 else {"text": "why", "id": n} for n in range(4)]


def test_columns_that_no_format_reads_are_named_once(tiny_tokenizer: Any) -> None:
    ledger = prepare(ROWS, tiny_tokenizer, PrepareOptions()).ledger
    assert ledger.columns_unused == {"id": 4, "url": 2}
    assert "columns not used: id (4 rows), url (2 rows)" in ledger.summary().split("\n")
    wide = [{"text": "why", **{f"c{n}": n for n in range(12)}}]
    assert prepare(wide, tiny_tokenizer, PrepareOptions()).ledger.summary().endswith("c9 (1 row) and 2 more")


def test_columns_that_are_read_are_not_named(tiny_tokenizer: Any) -> None:
    tokens = {"input_ids": [5, 6], "attention_mask": [1, 1]}
    assert not prepare([tokens], tiny_tokenizer, PrepareOptions()).ledger.columns_unused
    rows = [{"body": "why"}]
    assert not prepare(rows, tiny_tokenizer, PrepareOptions(text_field="body")).ledger.columns_unused
    made = prepare(ROWS, tiny_tokenizer, PrepareOptions(), formatting_func=lambda row: f"{row['id']}")
    assert not made.ledger.columns_unused, "a function may read any"


TURNS = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}]


def test_rows_of_several_formats_are_told_of(tiny_tokenizer: Any) -> None:
    rows = [
        *({"messages": TURNS, "text": "whole", "input": "x"} for _ in range(3)),
        {"messages": TURNS, "text": None},
        {"instruction": "why", "input": "", "output": "yes", "text": "whole"},
        {"text": "alone"},
    ]
    ledger = prepare(rows, tiny_tokenizer, PrepareOptions()).ledger
    assert ledger.formats_beside == {"messages, not text": 3, "alpaca, not text": 1}
    assert ledger.columns_unused == {"text": 5, "input": 3}
    assert "3 rows have the columns of several formats and are trained as messages, not text" in ledger.notes[0]
    assert "data.format=" in ledger.notes[0]
    named = prepare(rows, tiny_tokenizer, PrepareOptions(text_field="text")).ledger
    assert named.formats_beside == {"messages, not text": 3, "text, not alpaca": 1}
    assert named.columns_unused == {"text": 4, "input": 4, "instruction": 1, "output": 1}
    forced = prepare(rows[:3], tiny_tokenizer, PrepareOptions(format="text")).ledger
    assert not forced.formats_beside and forced.columns_unused == {"messages": 3, "input": 3}


def test_columns_of_other_names_are_read(tiny_tokenizer: Any) -> None:
    rows = [{"chat": TURNS, "text": "whole", "sys": "hm"}]
    options = PrepareOptions(columns={"messages": "chat", "system": "sys"})
    ledger = prepare(rows, tiny_tokenizer, options).ledger
    assert ledger.columns_unused == {"text": 1} and ledger.formats_beside == {"messages, not text": 1}


def test_lines_that_are_not_json_are_bad_rows(tmp_path: Path, tiny_tokenizer: Any) -> None:
    good = json.dumps({"messages": TURNS})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([good, "{'text': 1}", *[good] * 1500, good + ","]), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        prepare(str(path), tiny_tokenizer, PrepareOptions())
    message = str(caught.value)
    assert "2 of 1,503 rows cannot be trained on" in message
    assert f"{path}:2: not JSON: Expecting property name" in message and f"{path}:1503: not JSON: Extra data" in message
    dropped = prepare(str(path), tiny_tokenizer, PrepareOptions(bad_rows="drop"))
    assert dropped.ledger.rows_dropped == {"not JSON": 2} and dropped.ledger.rows_trained == 1501
    assert dropped.ledger.examples[0]["source"] == f"{path}:2"
    assert check(str(path), PrepareOptions()).ledger.rows_dropped == {"not JSON": 2}
    function = prepare(str(path), tiny_tokenizer, PrepareOptions(bad_rows="drop"), formatting_func=lambda row: "text")
    assert function.ledger.rows_dropped == {"not JSON": 2}


def test_a_stream_drops_them_as_well(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps({"text": "one"}), "{", json.dumps({"text": "two"})]), encoding="utf-8")
    stream = RowStream(str(path), tiny_tokenizer, PrepareOptions(bad_rows="drop"), shuffle_buffer=0)
    texts = [tiny_tokenizer.decode(row.input_ids) for _, row in islice(stream.rows(), 2)]
    assert [text.replace(tiny_tokenizer.eos_token, "") for text in texts] == ["one", "two"]
    assert stream.ledger.rows_in == 3 and stream.ledger.rows_dropped == {"not JSON": 1}


def test_a_conversation_that_begins_with_an_answer(tokenizer_with: Any) -> None:
    """Templates that look at the first message fail where there is none."""
    tokenizer = tokenizer_with(
        "{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}{%- for m in messages %}"
        "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    row = {"messages": [TURNS[1], *TURNS]}
    with pytest.raises(DataError, match="begins with the assistant") as caught:
        prepare([row], tokenizer, PrepareOptions())
    assert "UndefinedError" not in str(caught.value) and "put one first" in str(caught.value)
    marked = {"messages": [{**TURNS[1], "train": False}, *TURNS]}  # as it is advised
    assert prepare([marked], tokenizer, PrepareOptions()).ledger.rows_trained == 1
