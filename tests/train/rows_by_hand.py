"""Rows of every format, and the documents that training must make of them, worked out by hand: without honed."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

from honed.data.batch.table import PackedRow, PackedRows
from tests.train.oracle import Document

WORDS = (
    *("the", "quick", "brown", "fox", "asks", "why", "and", "answers"),
    *("with", "a", "word", "yes", "no", "one", "two"),
)
SYSTEM = "the system asks one two three why and answers with a word: the quick brown fox asks no one, user two. "
ASKS = {"chat": "assistant", "weighted": "assistant", "pairs": "completion", "tokens": "assistant", "texts": "all"}


def rows_of(data: str, *, seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of very different lengths, half of which begin alike."""
    draw = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))

    def row(n: int) -> dict[str, Any]:
        begin = SYSTEM if n % 2 else ""
        if data == "pairs":
            return {"prompt": begin + words(6), "completion": " " + words(9)}
        if data == "texts":
            return {"text": begin + words(20)}
        if data == "tokens":
            ids = [3 + (7 * k) % 300 for k in range(30 * (n % 2))] + [draw.randrange(3, 400) for _ in words(20).split()]
            return {"input_ids": [5, *ids], "loss_mask": [*(draw.choice([0, 0.5, 2.5]) for _ in ids), 1.5]}
        turns = [{"role": "system", "content": SYSTEM}] if begin else []
        for _ in range(1 + (n % 3 == 1)):
            weight = {"weight": draw.choice([0.25, 1, 3.0])} if data == "weighted" else {}
            turns.append({"role": "user", "content": words(6)})
            turns.append({"role": "assistant", "content": words(9), **weight})
        return {"messages": turns}

    return [row(n) for n in range(count)]


def document_of(row: dict[str, Any], tokenizer: Any) -> Document:
    """ChatML's turns up to and with their end, completions and texts with theirs, tokens as they are."""
    if "input_ids" in row:
        return Document.of(row["input_ids"], row["loss_mask"])
    pieces = [(row["prompt"], 0.0), (row["completion"] + "<|im_end|>", 1.0)] if "prompt" in row else []
    pieces += [(row["text"] + "<|im_end|>", 1.0)] if "text" in row else []
    for turn in row.get("messages", ()):
        weight = float(turn.get("weight", 1.0)) if turn["role"] == "assistant" else 0.0
        pieces += [(f"<|im_start|>{turn['role']}\n", 0.0), (f"{turn['content']}<|im_end|>", weight), ("\n", 0.0)]
    encoded = [(tokenizer(text, add_special_tokens=False)["input_ids"], weight) for text, weight in pieces]
    ids = [i for codes, _ in encoded for i in codes]
    return Document.of(ids, [weight for codes, weight in encoded for _ in codes])


def documents_of(rows: list[dict[str, Any]], run: dict[str, Any], tokenizer: Any) -> list[Document]:
    """Those of which anything is trained, cut as the run's options say."""
    documents, limit = [document_of(row, tokenizer) for row in rows], run["length"]
    if run["rows"] == "wrapped":
        ids = [i for document in documents for i in document.ids]
        weights = [w for document in documents for w in document.weights]
        starts = [sum(len(d.ids) for d in documents[:n]) for n in range(len(documents))]
        cuts = [*sorted({*starts, *range(0, len(ids), limit)}), len(ids)]
        return [Document.of(ids[a:b], weights[a:b]) for a, b in pairwise(cuts)]
    ends = [len(d.ids) if run["rows"] == "bfd_split" else min(limit, len(d.ids)) for d in documents]
    parts = [
        Document.of(d.ids[at : min(at + limit, end)], d.weights[at : min(at + limit, end)])
        for d, end in zip(documents, ends, strict=True)
        for at in range(0, end, limit)
    ]
    return [part for part in parts if any(part.weights)]


def documents_in(row: PackedRow) -> list[Document]:
    ends = [sum(row.lengths[: n + 1]) for n in range(len(row.lengths))]
    spans = [slice(end - length, end) for end, length in zip(ends, row.lengths, strict=True)]
    return [Document.of(row.input_ids[span].tolist(), row.weights[span].tolist()) for span in spans]


def assert_same_documents(rows: PackedRows, expected: list[Document]) -> None:
    found = [document for n in range(len(rows)) for document in documents_in(rows[n])]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
