"""Answers that begin with an empty reasoning block: counted where they are trained, not where they are context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from honed.data.lint.lint import check
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import Prepared, prepare
from honed.data.prepare.stream import RowStream

QWEN3 = (Path(__file__).parents[1] / "templates" / "families" / "qwen3.jinja").read_text(encoding="utf-8")
USER = {"role": "user", "content": "why"}
PLAIN = {"role": "assistant", "content": "one word"}
THOUGHT = {"role": "assistant", "content": "one word", "reasoning_content": "the fox asks"}
ROWS = [{"messages": [USER, PLAIN, USER, PLAIN]}, {"messages": [USER, PLAIN]}, {"messages": [USER, THOUGHT]}]
EMPTY = 3


@pytest.fixture(params=[True, False], ids=["tags are tokens", "tags are text"])
def tokenizer(request: pytest.FixtureRequest, tokenizer_with: Callable[..., Any]) -> Any:
    made = tokenizer_with(QWEN3)
    if request.param:  # as in Qwen3's vocabulary, where they are not special
        made.add_tokens(["<think>", "</think>"])
    return made


def counted(prepared: Prepared) -> int:
    notes = [note for note in prepared.ledger.notes if "empty reasoning block" in note]
    return int(notes[0].split()[0]) if notes else 0


def trained(prepared: Prepared, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row.input_ids[row.weights > 0]) for row in prepared.rows]


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
def test_they_are_counted_as_often_as_they_are_trained(tokenizer: Any, train_on: str) -> None:
    made = prepare(ROWS, tokenizer, PrepareOptions(train_on=train_on))
    assert counted(made) == sum(text.count("<think>\n\n</think>") for text in trained(made, tokenizer)) > 0


def test_the_advice_trains_the_answers_alone(tokenizer: Any) -> None:
    before = prepare(ROWS[:2], tokenizer, PrepareOptions())
    assert trained(before, tokenizer) == ["<think>\n\n</think>\n\none word<|im_end|>"] * EMPTY
    assert counted(before) == EMPTY
    after = prepare(ROWS[:2], tokenizer, PrepareOptions(template_arguments={"enable_thinking": False}))
    assert trained(after, tokenizer) == ["one word<|im_end|>"] * EMPTY and counted(after) == 0
    context = [tokenizer.decode(row.input_ids[row.weights == 0]) for row in after.rows]
    assert all("assistant\n<think>\n\n</think>\n\n" in text for text in context), "as it is served"


def test_a_prompt_that_opens_the_block_for_the_answer(tokenizer_with: Callable[..., Any]) -> None:
    """As the templates of models that always think do: only the closing tag is trained."""
    tokenizer = tokenizer_with(
        QWEN3.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}")
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    made = prepare(ROWS[1:], tokenizer, PrepareOptions())
    assert trained(made, tokenizer)[0] == "\n</think>\n\none word<|im_end|>" and counted(made) == 1


def test_reasoning_and_other_templates_are_not_counted(tokenizer: Any, tiny_tokenizer: Any) -> None:
    assert counted(prepare(ROWS[2:], tokenizer, PrepareOptions())) == 0
    assert counted(prepare(ROWS[:2], tiny_tokenizer, PrepareOptions())) == 0


def test_a_check_names_the_rows(tokenizer: Any) -> None:
    [found] = [
        f for f in check(ROWS, PrepareOptions(), tokenizer=tokenizer).findings if f.kind.name == "empty_reasoning"
    ]
    assert found.count == 2 and [(s.source, s.detail) for s in found.spots] == [
        ("row:1", "2 in this row"), ("row:2", "1 in this row"),
    ]  # fmt: skip


def test_a_stream_tells_what_it_has_read(tokenizer: Any) -> None:
    rows = [{**row, "text": "whole"} for row in ROWS]
    stream = RowStream(rows, tokenizer, PrepareOptions(), shuffle_buffer=0)
    next(stream.rows())
    formats, reasoning = stream.ledger.notes
    assert formats.startswith("3 rows have the columns of several formats and are trained as messages, not text")
    assert reasoning.startswith(f"{EMPTY} answers begin with an empty reasoning block")
