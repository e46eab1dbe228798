"""Rows that go straight to columns are those of the usual way: ids, weights, turns, sources and ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from honed.data.example import Source
from honed.data.ledger import Ledger
from honed.data.prepare.kept import KeptRows
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import make_template
from honed.data.prepare.reader import RowReader
from honed.data.read.sources import SourcedRow
from honed.errors import DataError, HonedError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# refuses some conversations
PICKY = "{% if 'raise' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + CHATML

texts = st.text(st.sampled_from("ab c1.%\n é中"), max_size=8) | st.sampled_from(
    [
        "<|im_end|>",
        "say <|im_end|> now",
        "<think>so</think>a",
        "\ud83d",
        " ",
        "raise",
        "why? " * 9,
        "%s %d %",
        "<|eos|>",
        "<|eos|>why",
        "<|eos|><|eos|>so",
    ]
)
roles = st.sampled_from(["user", "assistant", "assistant", "system", "tool", "human", "nobody"])
odd_messages = st.fixed_dictionaries(
    {"role": roles, "content": texts | st.none() | st.just([{"type": "text", "text": "typed"}])},
    optional={"train": st.booleans(), "weight": st.sampled_from([0, 0.5, 2]), "name": st.just("x")},
)
plain_turns = st.lists(texts, min_size=2, max_size=4).map(
    lambda own: [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(own)]
)
extras = {"id": st.integers(0, 3), "tools": st.none() | st.just([{"name": "f", "parameters": {}}]), "system": texts}
rows = (
    st.fixed_dictionaries({"messages": plain_turns})
    | st.fixed_dictionaries({"messages": plain_turns | st.lists(odd_messages, max_size=3)}, optional=extras)
    | st.fixed_dictionaries({"prompt": texts, "completion": texts}, optional=extras)
    | st.fixed_dictionaries({"text": texts | st.none() | st.integers()}, optional=extras)
    | st.fixed_dictionaries({"instruction": texts, "output": texts})
    | st.sampled_from([{"input_ids": [5, 6, 7]}, {"a": 1}, {}, [], None, {"messages": "no"}, {"text": "a", 1: 2}])
)
options = st.builds(
    PrepareOptions,
    train_on=st.sampled_from(["assistant", "last", "all", "completion"]),
    max_length=st.sampled_from([None, 8, 40]),
    overlong=st.sampled_from(["drop", "truncate", "split", "error"]),
    bad_rows=st.sampled_from(["error", "drop", "drop"]),
    system=st.sampled_from([None, None, "Be kind."]),
    text_field=st.sampled_from(["text", "text", "prompt"]),
    format=st.sampled_from(["auto", "auto", "auto", "messages", "text", "prompt_completion"]),
)

Outcome = tuple[KeptRows | str, Ledger]


def sourced(rows: list[Any]) -> list[SourcedRow]:
    """From two files, one after the other."""
    return [(Source(file="ab"[2 * n // len(rows)], row=n + 1), row) for n, row in enumerate(rows)]


def outcome(make: Callable[[Ledger], KeptRows]) -> Outcome:
    ledger = Ledger()
    try:
        return make(ledger), ledger
    except HonedError as error:
        return str(error), ledger


def both_ways(tokenizer: Any, own: list[list[SourcedRow]], chosen: PrepareOptions) -> Iterator[tuple[Outcome, Outcome]]:
    """For each chunk, straight and the usual way, each with one reader for all chunks."""
    readers = [RowReader(tokenizer, make_template(tokenizer, chosen), chosen) for _ in range(2)]
    for chunk in own:
        yield (
            outcome(lambda ledger, chunk=chunk: readers[0].columns(chunk, ledger)),  # type: ignore[misc]
            outcome(lambda ledger, chunk=chunk: KeptRows.of(list(readers[1](chunk, ledger)))),  # type: ignore[misc]
        )


def assert_same(straight: Outcome, usual: Outcome) -> None:
    if isinstance(straight[0], str):  # counted for as many rows as were encoded before the error
        straight[1].rows_with_own_bos = usual[1].rows_with_own_bos
    assert straight[1] == usual[1]
    assert list(straight[1].columns_unused) == list(usual[1].columns_unused)
    if isinstance(straight[0], str) or isinstance(usual[0], str):
        assert straight[0] == usual[0]
        return
    first, second = straight[0], usual[0]
    for field in fields(KeptRows):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and (field.name == "file" or np.array_equal(a, b)), field.name
    assert first.cuts == second.cuts
    assert [first.source(n) for n in range(len(first))] == [second.source(n) for n in range(len(second))]


@pytest.mark.parametrize("template", [CHATML, PICKY, None])
@pytest.mark.parametrize("bos", [None, "<|eos|>"])
def test_any_rows_come_out_the_same(tokenizer_with: Callable[..., Any], template: str | None, bos: str | None) -> None:
    special = ("<|im_start|>", "<|im_end|>", "<|eos|>")
    tokenizer = tokenizer_with(template or CHATML, special=special, eos_token="<|eos|>")
    if bos:
        own = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.eos_token_id)])
        tokenizer.backend_tokenizer.post_processor = own
        assert tokenizer("a")["input_ids"][0] == tokenizer.eos_token_id
    if template is None:
        tokenizer.chat_template = None

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.lists(rows, min_size=1, max_size=12), min_size=1, max_size=3), options)
    def holds(chunks: list[list[Any]], chosen: PrepareOptions) -> None:
        for straight, usual in both_ways(tokenizer, [sourced(own) for own in (plain(12), *chunks)], chosen):
            assert_same(straight, usual)

    holds()


def plain(count: int) -> list[Any]:
    kinds = (
        lambda n: {"prompt": f"why {n}?", "completion": " so"},
        lambda n: {"text": f"it is {n}"},
        lambda n: {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}]},
    )
    return [kinds[n % 3](n) for n in range(count)]


@pytest.fixture
def tokenizer(tokenizer_with: Callable[..., Any]) -> Any:
    return tokenizer_with(CHATML, special=("<|im_start|>", "<|im_end|>", "<|eos|>"), eos_token="<|eos|>")


def went(tokenizer: Any, own: list[Any], chosen: PrepareOptions | None = None) -> list[bool]:
    """Which of the rows go straight, once the shapes of plain ones are known."""
    reader = RowReader(tokenizer, make_template(tokenizer, chosen or PrepareOptions()), chosen or PrepareOptions())
    assert reader._fast_path is not None
    reader._fast_path(sourced(plain(12)))
    return list(reader._fast_path(sourced(own))[1].tolist())


def test_plain_rows_go_straight(tokenizer: Any) -> None:
    assert went(tokenizer, plain(9)) == [True] * 9
    assert went(tokenizer, [{**row, "id": 7} for row in plain(3)]) == [True] * 3, "no format reads this column"


def test_texts_that_begin_with_bos_go_straight_too(tokenizer: Any) -> None:
    own = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer.backend_tokenizer.post_processor = own
    rows = [{"text": "<|im_start|>why"}, {"prompt": "<|im_start|>why", "completion": " so"}, *plain(3)]
    assert went(tokenizer, rows) == [True] * 5
    reader = RowReader(tokenizer, make_template(tokenizer, PrepareOptions()), PrepareOptions())
    ledger = Ledger()
    kept = reader.columns(sourced(rows), ledger)
    starts = np.cumsum(kept.lengths) - kept.lengths
    assert (kept.input_ids[starts] == 1).all() and not (kept.input_ids[starts + 1] == 1).any()
    assert ledger.rows_with_own_bos == 2


@pytest.mark.parametrize(
    "row",
    [
        {"text": "it ends <|eos|>"},
        {"text": " "},
        {"text": "half \ud83d"},
        {"text": "long " * 400},
        {"prompt": "", "completion": "no prompt"},
        {"prompt": "a", "completion": "b", "images": ["x.png"]},
        {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b</think>"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": True}]},
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": []},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "system": "c"},
        {"input_ids": [5, 6]},
        "a text",
    ],
)
def test_what_is_special_goes_the_usual_way_and_only_that(tokenizer: Any, row: Any) -> None:
    assert went(tokenizer, [*plain(3), row, *plain(3)]) == [True] * 3 + [False] + [True] * 3


def test_renamed_columns_and_formatting_functions_go_the_usual_way(tokenizer: Any) -> None:
    assert went(tokenizer, plain(3), PrepareOptions(columns={"text": "body"})) == [False] * 3
    assert RowReader(tokenizer, None, PrepareOptions(), lambda row: row["text"])._fast_path is None


def test_the_first_bad_row_is_the_one_that_is_told(tokenizer: Any) -> None:
    own = sourced([*plain(6), {"text": "long " * 400}, {"text": "longer " * 400}, *plain(3)])
    reader = RowReader(tokenizer, make_template(tokenizer, PrepareOptions()), PrepareOptions(overlong="error"))
    with pytest.raises(DataError, match="b:7: "):
        reader.columns(own, Ledger())


@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "medicalgpt_medical_sft_1k.jsonl"])
def test_real_rows(shared_data: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "qwen_tokenizer")
    lines = (shared_data / name).read_text(encoding="utf-8").splitlines()[:200]
    own = [json.loads(line) for line in lines]
    pairs = [
        {"prompt": row["question"], "completion": row["answer"]} if n % 2 else
        {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}
        for n, row in enumerate(own)
        if "question" in row
    ]  # fmt: skip
    chunk = sourced(pairs or own)
    for chosen in (PrepareOptions(bad_rows="drop"), PrepareOptions(max_length=90, bad_rows="drop", train_on="all")):
        for straight, usual in both_ways(tokenizer, [chunk[:100], chunk[100:]], chosen):
            assert_same(straight, usual)
