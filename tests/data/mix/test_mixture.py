"""Several sources in one epoch: exact shares, the same rows for the same seed, every row accounted for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.data.mix.mixture import LEFT_OUT_BY_CAP, LEFT_OUT_BY_WEIGHT, Mixture, Part, mixture_from
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import Prepared, prepare
from honed.errors import DataError, RecipeError

CHAT = {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}]}


def texts(name: str, count: int) -> list[dict[str, str]]:
    return [{"text": f"{name} {number}"} for number in range(count)]


def mixture(*parts: dict[str, Any], seed: int = 0) -> Mixture:
    return Mixture(parts=tuple(Part(name=name, **part) for name, part in zip("abcdef", parts, strict=False)), seed=seed)


def trained(prepared: Prepared, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(prepared.rows[n].input_ids[:-1]) for n in range(len(prepared.rows))]


@pytest.mark.parametrize(
    ("parts", "counts", "expected"),
    [
        ([{}, {}], [10, 20], [10, 20]),
        ([{"repeat": 3}, {}], [10, 20], [30, 20]),
        ([{"weight": 0.7}, {"weight": 0.3}], [1000, 1000], [1000, 429]),
        ([{"weight": 7}, {"weight": 3}], [1000, 1000], [1000, 429]),
        ([{"weight": 0.7}, {"weight": 0.3}], [70, 30], [70, 30]),
        ([{"weight": 0.7}, {"weight": 0.3}], [1000, 3], [7, 3]),
        ([{"weight": 0.7}, {"weight": 0.3, "repeat": 10}], [1000, 3], [70, 30]),
        ([{"weight": 1}, {"weight": 1}, {"weight": 2}], [5, 9, 9], [4, 4, 9]),
        ([{"weight": 1}, {"weight": 10**6}], [9, 9], [1, 9]),
    ],
)
def test_rows_of_each_source_in_one_epoch(parts: list[dict[str, Any]], counts: list[int], expected: list[int]) -> None:
    times = mixture(*({"data": [], **part} for part in parts)).times(counts)
    assert [int(t.sum()) for t in times] == expected
    for part, own in zip(parts, times, strict=True):
        assert own.max() <= part.get("repeat", 1) and own.max() - own.min() <= 1


def test_the_ledger_says_what_became_of_each_source(tiny_tokenizer: Any) -> None:
    chosen = mixture(
        {"data": texts("one", 20), "weight": 0.75, "cap": 12},
        {"data": texts("two", 9), "weight": 0.25},
    )
    prepared = prepare(chosen, tiny_tokenizer, PrepareOptions())
    ledger = prepared.ledger
    assert (ledger.rows_in, ledger.rows_trained) == (29, 16)
    assert ledger.rows_dropped == {LEFT_OUT_BY_CAP: 8, LEFT_OUT_BY_WEIGHT: 5}
    assert {name: (n["rows_in"], n["rows_trained"]) for name, n in ledger.by_source.items()} == {
        "a": (20, 12),
        "b": (9, 4),
    }
    assert sum(n["tokens"] for n in ledger.by_source.values()) == ledger.tokens
    assert sum(n["trained_tokens"] for n in ledger.by_source.values()) == ledger.trained_tokens
    assert "  a: 12 rows, " in ledger.summary()
    assert Counter(text.split()[0] for text in trained(prepared, tiny_tokenizer)) == {"one": 12, "two": 4}


def test_the_seed_alone_decides_which_rows_are_used(tiny_tokenizer: Any) -> None:
    def run(seed: int, name: str = "two") -> list[str]:
        parts = ({"data": iter(texts("one", 30)), "cap": 9}, {"data": texts(name, 4)})
        return trained(prepare(mixture(*parts, seed=seed), tiny_tokenizer, PrepareOptions()), tiny_tokenizer)

    assert run(0) == run(0) != run(1)
    assert run(0)[:9] == run(0, "three")[:9]
    assert run(0)[:9] == sorted(run(0)[:9], key=lambda text: int(text.split()[1])), "the order of the rows is kept"


def test_repeated_rows_are_counted_once(tiny_tokenizer: Any) -> None:
    ledger = prepare(mixture({"data": texts("one", 5), "repeat": 3}), tiny_tokenizer, PrepareOptions()).ledger
    assert (ledger.rows_in, ledger.rows_trained, ledger.documents, ledger.by_source) == (5, 5, 15, {})


def test_each_source_is_read_its_own_way(tiny_tokenizer: Any, tokenizer_with: Any) -> None:
    own = "{% for m in messages %}{{ m.role + mood + m.content + '<|im_end|>' }}{% endfor %}"
    tokenizer = tokenizer_with(own + "{% if add_generation_prompt %}{{ 'assistant' + mood }}{% endif %}")
    chosen = mixture(
        {"data": [CHAT], "system": "Be brief.", "template_arguments": {"mood": "!"}},
        {"data": [CHAT]},
        {"data": [{"text": "fox", "messages": 5}], "format": "text"},
        {"data": [CHAT], "template": "plain", "system": "So."},
    )
    options = PrepareOptions(template_arguments={"mood": "?"})
    prepared = prepare(chosen, tokenizer, options)
    shown = [tokenizer.decode(prepared.rows[n].input_ids) for n in range(4)]
    assert shown[0] == "system!Be brief.<|im_end|>user!why<|im_end|>assistant!yes<|im_end|>"
    assert shown[1] == "user?why<|im_end|>assistant?yes<|im_end|>"
    assert shown[2] == "fox<|im_end|>"
    assert shown[3].startswith("<|im_start|>\n#SYSTEM:So.")


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 10), min_size=4, max_size=4) | st.none(),
    caps=st.lists(st.integers(1, 12) | st.none(), min_size=4, max_size=4),
)
def test_every_row_of_every_source_is_accounted_for(
    tiny_tokenizer: Any, sizes: list[int], weights: list[float] | None, caps: list[int | None]
) -> None:
    parts = [
        {"data": [*texts("a", size), {"text": ""}], "weight": weights and weights[n], "cap": caps[n]}
        for n, size in enumerate(sizes)
    ]
    try:
        ledger = prepare(mixture(*parts), tiny_tokenizer, PrepareOptions(bad_rows="drop")).ledger
    except DataError as error:  # a cap of 1 may pick the empty row
        assert "no row to train" in str(error) or "No row is left" in str(error)
        return
    assert ledger.rows_in == sum(sizes) + len(sizes) == ledger.rows_trained + ledger.rows_dropped.total()


def test_sources_of_a_recipe(tmp_path: Path, tiny_tokenizer: Any) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, texts(name, 4))))
    found = mixture_from(
        [
            {"files": f"{tmp_path}/a.jsonl", "weight": 0.5, "name": "mine"},
            {"files": [f"{tmp_path}/b.jsonl"], "weight": 0.5, "cap": 2, "name": "mine"},
        ],
        seed=3,
    )
    assert [part.name for part in found.parts] == ["mine", "mine (2)"]
    ledger = prepare(found, tiny_tokenizer, PrepareOptions()).ledger
    assert (ledger.rows_trained, ledger.rows_dropped.total()) == (4, 4)


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        ([{"files": "a", "wieght": 1}], r"'wieght' in data\.sources\[1\].*\n.*did you mean 'weight'"),
        ([{"weight": 1}], r"data\.sources\[1\] names no files"),
        ([{"files": "a", "weight": 1}, {"files": "b"}], "these have none: b"),
        ([{"files": "a", "weight": 0}], "weight of source a is 0"),
        ([{"files": "a", "cap": 1.5}], r"cap of source a is 1\.5"),
        ([{"files": "a", "repeat": 0}], "repeat of source a is 0"),
        ([{"files": "a", "template_arguments": "x"}], "template_arguments of .* is no mapping"),
        ([], "without sources"),
    ],
)
def test_sources_that_cannot_be(sources: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        mixture_from(sources, seed=0)


def test_a_weight_needs_rows(tiny_tokenizer: Any) -> None:
    parts = ({"data": texts("one", 3), "weight": 1}, {"data": [], "weight": 1})
    with pytest.raises(DataError, match="source b has a weight, but no row to train"):
        prepare(mixture(*parts), tiny_tokenizer, PrepareOptions())
