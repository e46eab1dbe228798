"""Rows that cannot be used are refused by name, and never with an error from within."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reading import ANSWER, USER, read

from honed.data.example import Conversation, RowError, Tokens
from honed.data.read.formats import FORMATS
from honed.recipe import load_recipe

SYSTEM = {"role": "system", "content": "Be brief.\n"}


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
        ({"messages": [USER, {**ANSWER, "weight": -1}]}, "weight is not a number from 0 on: found -1"),
        ({"messages": [USER, {**ANSWER, "weight": True}]}, "weight is not a number from 0 on: found True"),
        ({"conversations": [USER, {"from": "function_call", "value": "{sum"}]}, "tool calls are not JSON"),
        ({"conversations": [USER, {"from": "function_call", "value": "[1]"}]}, "tool calls are not objects"),
        ({"conversations": [USER, {"from": "function_call", "value": None}]}, "tool calls are not objects: found None"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": ""}}]}]}, "tool call without a name"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}, ANSWER]}, "text expected"),
        ({"prompt": "a", "completion": "b", "images": ["a.png"]}, "images in a text-only template"),
        ({"messages": [USER, ANSWER], "tools": "[{"}, "tools are not JSON"),
        ({"messages": [USER, ANSWER], "tools": "[" * 100_000}, "tools are not JSON"),
        ({"messages": [USER, ANSWER], "tools": [1]}, "tools are not a list of objects"),
        ({"conversations": [USER, ANSWER], "system": 5}, "text expected: `system` holds int"),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "Be long."}, "two system prompts: `system` and the first"),
        ({"instruction": "a", "output": 5}, "text expected: `output` holds int"),
        ({"instruction": "a", "output": "b", "history": ["ab"]}, "history is not a list"),
        ({"prompt": "a", "completion": " "}, "empty answer"),
        (
            {"prompt": "a", "completion": [ANSWER]},
            "prompt and completion differ in kind: both must be texts, or both lists of messages; found str and list",
        ),
        (
            {"prompt": float("nan"), "completion": "b"},
            "prompt and completion differ in kind: both must be texts, or both lists of messages; found float and str",
        ),
        ({"prompt": [USER], "completion": b"b"}, "prompt and completion differ in kind"),
        ({"messages": [{"user": "a"}]}, "message without a role: keys seen: user"),
        ({"data": [{"text": "a"}, {"text": "b"}]}, "unknown format: keys seen: data. `data` holds 2 objects"),
        ({"prompt;completion": "a;b"}, "unknown format: keys seen: prompt;completion. This is one column"),
        ({" n": 1, "m": 2}, "unknown format: keys seen: ' n', m."),
        ({"prompt": ["a"], "completion": [ANSWER]}, "message is not an object: found 'a'"),
        ({"data": [{"text": "a"}], "version": 1}, "`data` holds 1 object: if these are the rows"),
        ({"name": "a", "instances": [{"input": "a"}]}, "keys seen: name, instances. Formats known"),
        ({"Messages": [USER, ANSWER]}, "data.columns='{messages: Messages}'"),
        ({"title": "a", "mapping": {"x": {"message": None}}}, "ChatGPT's export, a tree: from `current_node` follow"),
        ({"uuid": "a", "chat_messages": [{"sender": "human", "text": "a"}]}, "role: sender, content: text}'"),
        ({"text": " "}, "empty text"),
        ({"text": 5}, "text expected"),
        ({"input_ids": [1.5]}, "not a tokens row"),
        ({"input_ids": "12"}, "not a tokens row"),
        ({"input_ids": [float("inf")]}, "not a tokens row"),
        ({"input_ids": [-1, 2**31]}, "token ids out of range: found -1 to 2147483648"),
        ({"input_ids": [1, 2], "labels": [1]}, "mask and input_ids differ in length: 1 and 2"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, "labels differ from input_ids"),
        ({"input_ids": [1], "loss_mask": [float("nan")]}, "loss weights out of range"),
        ({"input_ids": [1], "loss_mask": [1e39]}, "loss weights out of range"),  # infinite as float32
        ({"input_ids": [1], "loss_mask": [10**400]}, "loss weights out of range"),
        ({"messages": [USER, {**ANSWER, "weight": 1e39}]}, "weight is not a number from 0 on: found 1e+39"),
        ({"messages": [USER, {**ANSWER, "weight": 10**400}]}, "weight is not a number from 0 on: found 1000"),
    ],
)
def test_rows_that_cannot_be_used(row: Any, problem: str) -> None:
    with pytest.raises(RowError) as caught:
        read(row)
    assert problem in str(caught.value)


def test_one_system_prompt_in_two_places_is_one() -> None:
    twice = read({"messages": [SYSTEM, USER, ANSWER], "system": "Be brief."})
    assert (
        twice == read({"messages": [SYSTEM, USER, ANSWER]}) == read({"messages": [SYSTEM, USER, ANSWER], "system": ""})
    )


def test_unknown_format_lists_the_keys_seen_and_the_formats_known() -> None:
    with pytest.raises(RowError, match="unknown format") as caught:
        read({"who": "a", "what": "b"})
    assert "keys seen: who, what. Formats known:" in caught.value.detail
    assert all(name in caught.value.detail for name in FORMATS)


KEYS = ["messages", "conversations", "instruction", "input", "output", "response", "history", "system", "prompt",
        "completion", "text", "input_ids", "labels", "completion_mask", "tools", "role", "from", "content", "value",
        "train", "tool_calls", "type", "weight", "function_call", "function", "arguments", "name", "channel",
        "thinking", "images", "tool_use_id", "call_id", "summary"]  # fmt: skip
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
leaves |= st.sampled_from(["user", "assistant", "function_call", "text", "image", "[]", "{}", "[[]]"])
leaves |= st.sampled_from(["tool_use", "tool_result", "reasoning", "function_call_output"])
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


def test_a_column_that_is_null_is_named() -> None:
    for row, key in (({"messages": None}, "messages"), ({"text": None, "id": 1}, "text"),
                     ({"prompt": "a", "completion": None}, "completion")):  # fmt: skip
        with pytest.raises(RowError, match=f"^`{key}` is null: keys seen: "):
            read(row)
    with pytest.raises(RowError, match=r"^`body` is null"):
        read({"body": None}, text_field="body")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "a", "answer": "b"}, "a b"),
        ({"input": "a", "output": "b"}, "a b"),
        ({"prompt": "a", "response": "b"}, "a b"),
        ({"query": "a", "response": "b"}, "a b"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a b"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, "why yes"),
        ({"prompt": "why", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "why yes"),
        ({"chosen": "a b", "rejected": "a c"}, "a b"),
        ({"Prompt": "a", " completion": "b"}, "a b"),
        ({"Instruction": "a", "Input": "", "OUTPUT": "b"}, "a b"),
        ({"TEXT": "a b", "n": 1}, "a b"),
        ({"input": [USER], "output": [ANSWER], "instructions": "so"}, "so why yes"),
    ],
)
def test_every_option_that_is_advised_reads_the_row(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(RowError, match=r"^unknown format: ") as caught:
        read(row)
    assert ("honed does SFT" in caught.value.detail) is ("chosen" in row)
    advised = re.findall(r"""data\.columns=(["'])(\{.*?\})\1""", caught.value.detail)
    assert advised
    for _, text in advised:
        columns = load_recipe(None, [f"data.columns={text}"]).data.columns
        assert repr(columns) in caught.value.detail, "as Python takes it"
        example = read(row, columns=columns)
        messages = [message.content for message in getattr(example, "messages", ())]
        texts = messages or [getattr(example, key) for key in ("prompt", "completion", "text") if hasattr(example, key)]
        assert " ".join(texts) == expected
