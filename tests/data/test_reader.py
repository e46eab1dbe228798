"""What is counted while rows are read: columns that no format reads."""

from __future__ import annotations

from typing import Any

from honed.data.prepare import PrepareOptions, prepare

ROWS = [{"text": "why", "id": n, "url": "x"} if n % 2 else {"text": "why", "id": n} for n in range(4)]


def test_columns_that_no_format_reads_are_named_once(tiny_tokenizer: Any) -> None:
    ledger = prepare(ROWS, tiny_tokenizer, PrepareOptions()).ledger
    assert ledger.columns_unused == {"id": 4, "url": 2}
    assert "columns not used: id (4 rows), url (2 rows)" in ledger.summary().split("\n")
    wide = [{"text": "why", **{f"c{n}": n for n in range(12)}}]
    assert prepare(wide, tiny_tokenizer, PrepareOptions()).ledger.summary().endswith("c9 (1 rows) and 2 more")


def test_columns_that_are_read_are_not_named(tiny_tokenizer: Any) -> None:
    tokens = {"input_ids": [5, 6], "attention_mask": [1, 1]}
    assert not prepare([tokens], tiny_tokenizer, PrepareOptions()).ledger.columns_unused
    rows = [{"body": "why"}]
    assert not prepare(rows, tiny_tokenizer, PrepareOptions(text_field="body")).ledger.columns_unused
    made = prepare(ROWS, tiny_tokenizer, PrepareOptions(), formatting_func=lambda row: f"{row['id']}")
    assert not made.ledger.columns_unused, "a function may read any"
