"""Rows of every format, and rows of none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from honed.data.example import Conversation, Document, PromptCompletion, Source, Tokens
from honed.data.formats import FORMATS, ReadOptions, RowError, read_example

SOURCE = Source(file="f", row=1)
USER, ANSWER = {"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}


def read(row: Any, format: str = "auto", **options: Any) -> Any:
    return read_example(row, SOURCE, ReadOptions(**options), format=format)


def turns(row: Any, **options: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in read(row, **options).messages]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, ANSWER]}, "user why assistant yes"),
        ({"messages": [{"role": "Developer", "content": "hm"}, USER, ANSWER]}, "system hm user why assistant yes"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "user a assistant b"),
        # as Arrow fills them where rows differ
        ({"messages": [{"role": None, "from": "human", "content": None, "value": "a"}, ANSWER]},
         "user a assistant yes"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                       ANSWER]}, "user ab assistant yes"),
        ({"conversations": [USER, ANSWER], "system": "hm"}, "system hm user why assistant yes"),
        ({"messages": [USER, ANSWER], "system": "hm"}, "system hm user why assistant yes"),
        ({"instruction": "a", "output": "b"}, "user a assistant b"),
        ({"instruction": "a", "input": "", "response": "b", "text": "whole"}, "user a assistant b"),
        ({"instruction": "a", "input": "c", "output": "b"}, "user a\nc assistant b"),
        ({"instruction": "", "input": "c", "output": "b"}, "user c assistant b"),
        ({"instruction": "a", "output": "b", "history": [["1", "2"], ["3", "4"]], "system": "hm"},
         "system hm user 1 assistant 2 user 3 assistant 4 user a assistant b"),
        ({"prompt": [USER], "completion": [ANSWER]}, "user why assistant yes"),
    ],
)  # fmt: skip
def test_conversations(row: dict[str, Any], expected: str) -> None:
    assert " ".join(f"{role} {content}" for role, content in turns(row)) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "completion": " b"}, PromptCompletion(prompt="a", completion=" b", source=SOURCE)),
        ({"text": " a\n"}, Document(text=" a\n", source=SOURCE)),
        ({"text": "a", "prompt": None, "completion": "b"}, Document(text="a", source=SOURCE)),
        ({"input_ids": [5, 6]}, Tokens(input_ids=(5, 6), weights=(1, 1), source=SOURCE)),
        ({"input_ids": np.array([5, 6])}, Tokens(input_ids=(5, 6), weights=(1, 1), source=SOURCE)),
        ({"input_ids": [5, 6], "labels": [-100, 6]}, Tokens(input_ids=(5, 6), weights=(0, 1), source=SOURCE)),
        ({"input_ids": [5, 6], "completion_mask": [0, 1]}, Tokens(input_ids=(5, 6), weights=(0, 1), source=SOURCE)),
        ({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [1, 0, 1]},
         Tokens(input_ids=(5, 6, 7), weights=(0, 0, 1), source=SOURCE)),
        ({"input_ids": [5, 6], "loss_mask": [0.5, 0]}, Tokens(input_ids=(5, 6), weights=(0.5, 0), source=SOURCE)),
    ],
)  # fmt: skip
def test_other_kinds(row: dict[str, Any], expected: Any) -> None:
    assert read(row) == expected


def test_options() -> None:
    talk = {"conversations": [USER, ANSWER]}
    assert turns(talk, system="mine") == [("system", "mine"), ("user", "why"), ("assistant", "yes")]
    assert turns({**talk, "system": "own"}, system="mine")[0] == ("system", "own")
    assert turns({"messages": [{"role": "system", "content": "own"}, USER, ANSWER]}, system="mine")[0][1] == "own"
    assert turns({"instruction": "a", "input": "b", "output": "c"}, alpaca_separator="")[0] == ("user", "ab")
    assert read({"body": "a"}, text_field="body") == Document(text="a", source=SOURCE)
    assert read({"text": "a", "messages": [ANSWER]}, format="text") == Document(text="a", source=SOURCE)


def trains(row: dict[str, Any]) -> list[bool | None]:
    return [message.train for message in read(row).messages]


def test_train_flags() -> None:
    assert trains({"messages": [USER, {**ANSWER, "train": False}, USER, {**ANSWER, "train": 1}]}) == [
        None, False, None, True,
    ]  # fmt: skip
    assert trains({"messages": [USER, {**ANSWER, "train": 0}]}) == [None, False]
    # what stands in the prompt is context, also the answers of few-shot examples
    assert trains({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}) == [False, False, False, None]
    assert trains({"instruction": "a", "output": "b"}) == [False, None]


def test_further_keys_and_tools_reach_the_template() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "sum"}], "name": None}
    talk = read({"messages": [USER, call], "tools": '[{"name": "sum"}]'})
    assert talk.messages[1].as_template_input() == {
        "role": "assistant", "content": "", "tool_calls": [{"name": "sum"}],
    }  # fmt: skip
    assert talk.tools == ({"name": "sum"},)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (["a"], "row is not an object: found list"),
        ({}, "keys seen: none"),
        ({"messages": []}, "no messages"),
        ({"messages": "hi"}, "no messages"),
        ({"messages": [USER]}, "nothing to train"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "empty answer: message 2"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "text expected: `content` holds NoneType"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "unknown role: found 'wizard'; known: system"),
        ({"messages": ["why"]}, "message is not an object: found 'why'"),
        ({"messages": [USER, {**ANSWER, "train": "no"}]}, "train is not true or false: found 'no'"),
        ({"messages": [USER, ANSWER], "tools": "[{"}, "tools are not JSON"),
        ({"messages": [USER, ANSWER], "tools": "[" * 100_000}, "tools are not JSON"),
        ({"messages": [USER, ANSWER], "tools": [1]}, "tools are not a list of objects"),
        ({"conversations": [USER, ANSWER], "system": 5}, "text expected: `system` holds int"),
        ({"instruction": "a", "output": 5}, "text expected: `output` holds int"),
        ({"instruction": "a", "output": "b", "history": ["ab"]}, "history is not a list"),
        ({"prompt": "a", "completion": " "}, "empty answer"),
        ({"prompt": "a", "completion": [ANSWER]}, "prompt and completion differ in kind"),
        ({"prompt": ["a"], "completion": [ANSWER]}, "not a prompt_completion row"),
        ({"text": " "}, "empty text"),
        ({"text": 5}, "text expected"),
        ({"input_ids": [1.5]}, "not a tokens row"),
        ({"input_ids": "12"}, "not a tokens row"),
        ({"input_ids": [float("inf")]}, "not a tokens row"),
        ({"input_ids": [-1, 2**31]}, "token ids out of range: found -1 to 2147483648"),
        ({"input_ids": [1, 2], "labels": [1]}, "mask and input_ids differ in length: 1 and 2"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, "labels differ from input_ids"),
        ({"input_ids": [1], "loss_mask": [float("nan")]}, "loss weights out of range"),
    ],
)
def test_rows_that_cannot_be_used(row: Any, problem: str) -> None:
    with pytest.raises(RowError) as caught:
        read(row)
    assert problem in str(caught.value)


def test_unknown_format_lists_the_keys_seen_and_the_formats_known() -> None:
    with pytest.raises(RowError, match="unknown format") as caught:
        read({"question": "a", "answer": "b"})
    assert "keys seen: question, answer. Formats known:" in caught.value.detail
    assert all(name in caught.value.detail for name in FORMATS)


KEYS = ["messages", "conversations", "instruction", "input", "output", "response", "history", "system", "prompt",
        "completion", "text", "input_ids", "labels", "completion_mask", "tools", "role", "from", "content", "value",
        "train", "tool_calls", "type"]  # fmt: skip
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
leaves |= st.sampled_from(["user", "assistant", "text", "[]", "{}", "[[]]"])
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner), max_leaves=8
)
rows = values | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), values, max_size=5)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(row=rows, format=st.sampled_from(["auto", *FORMATS]))
@example(row={"input_ids": [float("inf")]}, format="auto")
@example(row={"messages": [{"role": "user", "content": "a", "train": {}}]}, format="auto")
def test_whatever_json_holds_it_is_read_or_refused(row: Any, format: str) -> None:
    try:
        found = read(row, format=format)
    except RowError:
        return
    if isinstance(found, Conversation):
        assert all(isinstance(message.content, str) for message in found.messages)
    if isinstance(found, Tokens):
        assert len(found.input_ids) == len(found.weights)
