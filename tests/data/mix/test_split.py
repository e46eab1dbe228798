"""A share held out: the same rows in any order, nothing alike on both sides."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from honed.data.mix.mixture import Mixture, Part
from honed.data.mix.split import Split, content, split
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.read.sources import read_rows
from honed.errors import DataError, RecipeError

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def sentence(seed: int, words: int = 30) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def rows_of(count: int) -> list[dict[str, str]]:
    return [{"text": " ".join(sentence(n))} for n in range(count)]


def one(rows: Any) -> Mixture:
    return Mixture(parts=(Part(data=rows),))


def held(parted: Split) -> list[Any]:
    return [row for part in parted.held_out.parts for _, row in read_rows(part.data)]


def kept(parted: Split) -> list[Any]:
    return [row for part in parted.train.parts for _, row in read_rows(part.data)]


def test_both_sides_are_all_rows() -> None:
    rows = rows_of(200)
    parted = split(one(rows), 0.1, seed=0)
    assert len(held(parted)) == 20 and len(kept(parted)) == 180
    assert sorted(map(str, held(parted) + kept(parted))) == sorted(map(str, rows))
    assert parted.note == "20 of 200 rows (10.0%) are held out for evaluation, in 20 groups of rows alike"
    assert held(split(one(rows), 0.1, seed=1)) != held(parted)
    sources = [str(source) for source, _ in read_rows(parted.held_out.parts[0].data)]
    assert sources == [f"row:{rows.index(row) + 1}" for row in held(parted)], "rows keep their numbers"


def test_the_side_does_not_depend_on_the_order() -> None:
    rows = rows_of(150) + [{"text": " ".join([*sentence(n)[:-1], "other"])} for n in range(30)]
    shuffled = random.Random(1).sample(rows, len(rows))
    first, second = (sorted(row["text"] for row in held(split(one(r), 0.2, seed=0))) for r in (rows, shuffled))
    assert first == second


@pytest.mark.parametrize(
    "change",
    [
        lambda words: " ".join(words).upper(),
        lambda words: "  ".join(words) + "\n!",
        ", ".join,
        lambda words: " ".join([*words[:15], "zzz", *words[16:]]),
        lambda words: " ".join(words[:-1]),
    ],
)
def test_rows_alike_are_on_one_side(change: Any) -> None:
    """Sentences of 60 words, each twice; at most one word is changed."""
    pairs = [(" ".join(words), change(words)) for words in (sentence(n, 60) for n in range(100))]
    parted = split(one([{"text": text} for pair in pairs for text in pair]), 0.3, seed=0)
    out = {row["text"] for row in held(parted)}
    assert len(out) in (60, 30)  # 30 where both texts are the same
    assert all((a in out) == (b in out) for a, b in pairs)


@pytest.mark.parametrize(
    ("row", "other"),
    [
        ({"text": "Room 12, at 3.50!"}, {"text": "room 7 at 1,000"}),
        ({"prompt": "Why?", "completion": "So."}, {"prompt": "why", "completion": "SO", "id": "f81d"}),
        (
            {"messages": [{"role": "system", "content": "A"}, {"role": "user", "content": "why"}]},
            {"messages": [{"role": "user", "content": "why"}]},
        ),
        (
            {"conversations": [{"from": "human", "value": "why"}, {"from": "gpt", "value": "so"}]},
            {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]},
        ),
    ],
)
def test_rows_with_the_same_content(row: dict[str, Any], other: dict[str, Any]) -> None:
    assert content(row) == content(other)


def test_rows_with_different_content() -> None:
    rows: list[Any] = [{"input_ids": [1, 2]}, {"input_ids": [1, 3]}, {"text": "?"}, {"text": "!"}, {"my": "a"}, 5, None]
    assert len({content(row) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("name", "reading"),
    [("text", {}), ("body", {"columns": {"text": "body"}}), ("body", {"text_field": "body"})],
    ids=["own name", "renamed", "named text"],
)
def test_columns_that_are_not_read_do_not_part_rows(name: str, reading: dict[str, Any]) -> None:
    """Each text stands there twice, beside words that no other row has."""
    texts = [" ".join(sentence(n, words=6)) for n in range(100)]
    rows = [{name: text, "id": " ".join(sentence(1000 + n))} for n, text in enumerate(texts * 2)]
    parted = split(one(rows), 0.2, seed=0, **reading)
    assert not {row[name] for row in held(parted)} & {row[name] for row in kept(parted)}


def test_several_sources_are_parted_together(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """The same rows in two files: no row is held out of one and trained from the other."""
    rows = rows_of(60)
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = tuple(Part(data=f"{tmp_path}/{name}.jsonl", name=name, weight=w) for name, w in (("a", 0.5), ("b", 1.5)))
    parted = split(Mixture(parts=parts), 0.1, seed=0)
    assert len(held(parted)) == 12
    assert {str(row) for row in held(parted)}.isdisjoint(map(str, kept(parted)))
    ledger = prepare(parted.train, tiny_tokenizer, PrepareOptions()).ledger
    assert (ledger.rows_in, ledger.rows_trained) == (108, 54 + 18), "weights hold on the training side"
    assert prepare(parted.held_out, tiny_tokenizer, PrepareOptions()).ledger.rows_trained == 12


def test_what_cannot_be_parted() -> None:
    with pytest.raises(RecipeError, match="eval_share is 2"):
        split(one(rows_of(3)), 2, seed=0)
    with pytest.raises(DataError, match="There are no rows"):
        split(one([]), 0.1, seed=0)
    with pytest.raises(DataError, match=r"10.0% of 30 rows cannot be held out; the largest group .* has 30 "):
        split(one([{"text": f"What is {n} + 1?"} for n in range(30)]), 0.1, seed=0)
