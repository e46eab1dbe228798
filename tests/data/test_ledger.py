"""What the ledger keeps, and how it says it."""

from __future__ import annotations

import json

from honed.data.example import Source
from honed.data.ledger import Ledger


def test_summary_and_dict() -> None:
    ledger = Ledger(rows_in=1006, rows_trained=1000, tokens=4000, trained_tokens=1000, documents=1003, packed_rows=12)
    for row in range(1, 6):
        ledger.drop(Source(file="a.jsonl", row=row), "overlong", f"{row * 100} tokens")
    ledger.drop(Source(file="a.jsonl", row=6), "empty answer")
    ledger.cut(Source(file="a.jsonl", row=7), "overlong: cut at the end")
    ledger.conversations_split_into_views, ledger.fill = 3, 0.875
    ledger.stop_tokens["<|im_end|>"] = 1003
    ledger.notes.append("mind the gap")
    assert ledger.summary() == (
        "1,006 rows in, 1,000 trained, 6 dropped\n"
        "  dropped 5: overlong\n"
        "  dropped 1: empty answer\n"
        "  cut 1: overlong: cut at the end\n"
        "  3 conversations became one view per answer\n"
        "4,000 tokens, 1,000 of them trained (25%)\n"
        "12 packed rows, 87.5% full\n"
        "trained turns end with '<|im_end|>' (1,003)\n"
        "note: mind the gap"
    )
    kept = json.loads(json.dumps(ledger.as_dict()))
    assert kept["rows_dropped"] == {"overlong": 5, "empty answer": 1}
    assert [example["source"] for example in kept["examples"]] == [f"a.jsonl:{row}" for row in (1, 2, 3, 6, 7)]
    assert kept["examples"][0] == {"source": "a.jsonl:1", "reason": "overlong", "detail": "100 tokens"}


def test_an_empty_ledger_can_be_shown() -> None:
    assert Ledger().summary() == "0 rows in, 0 trained, 0 dropped\n0 tokens, 0 of them trained (0%)"
    assert "fill" not in Ledger().as_dict()
