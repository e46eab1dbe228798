"""Rows of every format, under every name of their columns."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from reading import ANSWER, HUMAN, SOURCE, USER, read, turns

from honed.data.example import Document, PromptCompletion, RowError, Tokens
from honed.data.read.formats import check_columns
from honed.errors import RecipeError


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, ANSWER]}, "user why assistant yes"),
        ({"messages": [{"role": "Developer", "content": "hm"}, USER, ANSWER]}, "system hm user why assistant yes"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "user a assistant b"),
        # as Arrow fills them where rows differ
        ({"messages": [{"role": None, "from": "human", "content": None, "value": "a"}, ANSWER]},
         "user a assistant yes"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "3"},
                            {"from": "gpt", "value": "b"}]}, "user a tool 3 assistant b"),
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
        ({"input_ids": [5, 6], "assistant_masks": [1, 0]}, Tokens(input_ids=(5, 6), weights=(1, 0), source=SOURCE)),
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


def test_weights_of_messages() -> None:
    row = {
        "messages": [USER, {**ANSWER, "weight": 0.3}, {**ANSWER, "weight": 0}, {**ANSWER, "weight": 2, "train": False}]
    }
    assert [message.loss_weight for message in read(row).messages] == [1.0, 0.3, 0.0, 0.0]


def test_columns_of_other_names() -> None:
    talk = {"chat": [{"who": "human", "text": "a"}, {"who": "bot", "text": "b"}], "sys": "hm", "text": "not this"}
    columns = {"messages": "chat", "role": "who", "content": "text", "system": "sys"}
    assert turns(talk, columns=columns) == [("system", "hm"), ("user", "a"), ("assistant", "b")]
    pair = read({"question": "a", "answer": "b"}, columns={"prompt": "question", "completion": "answer"})
    assert pair == PromptCompletion(prompt="a", completion="b", source=SOURCE)


@pytest.mark.parametrize(
    ("row", "columns", "problem"),
    [
        ({"talk": [], "id": 1}, {"messages": "chat"}, "column not found: 'chat' of data.columns; keys seen: talk, id"),
        ({"messages": [{"name": "a", "content": "b"}]}, {"role": "who"},
         "key not found in a message: 'who' of data.columns; keys seen: name, content"),
    ],
)  # fmt: skip
def test_mapped_columns_that_are_absent(row: dict[str, Any], columns: dict[str, str], problem: str) -> None:
    with pytest.raises(RowError, match=re.escape(problem)):
        read(row, columns=columns)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [({"mesages": "chat"}, "did you mean 'messages'"), ({"messages": 5}, "columns: messages is 5")],
)
def test_columns_that_no_format_has(columns: Any, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        check_columns(columns)


def test_thinking_under_every_name() -> None:
    thought = {"thinking": "hm", "reasoning_content": "hm"}
    for extra in ({"thinking": "hm"}, {"reasoning_content": "hm"}, {"reasoning": "hm"}):
        found = read({"messages": [USER, {**ANSWER, **extra}]}).messages[1].as_template_input()
        assert found == {**ANSWER, **thought, **extra}
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}]
    assert read({"messages": [USER, {"role": "assistant", "content": parts}]}).messages[1].reasoning == "hm"
    channels = [{"role": "assistant", "channel": "analysis", "content": "hm"}, {**ANSWER, "channel": "final"}]
    merged = read({"messages": [USER, *channels]}).messages
    assert [(m.role, m.content, m.reasoning) for m in merged[1:]] == [("assistant", "yes", "hm")]


def test_images_are_passed_on() -> None:
    image = {"type": "image_url", "image_url": {"url": "a.png"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "what"}, image]}
    talk = read({"messages": [asked, ANSWER]})
    assert (talk.messages[0].content, talk.messages[0].parts, talk.has_images) == (
        "what",
        tuple(asked["content"]),
        True,
    )
    assert read({"messages": [USER, ANSWER], "images": ["a.png", "b.png"]}).images == ("a.png", "b.png")
    assert read({"conversations": [USER, ANSWER], "image": "a.png"}).images == ("a.png",)
    assert not read({"messages": [USER, ANSWER], "images": []}).has_images


def test_further_keys_and_tools_reach_the_template() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "sum"}], "name": None}
    talk = read({"messages": [USER, call], "tools": '[{"name": "sum"}]'})
    assert talk.messages[1].as_template_input() == {
        "role": "assistant", "content": "", "tool_calls": [{"name": "sum"}],
    }  # fmt: skip
    assert talk.tools == ({"name": "sum"},)


def test_messages_as_json() -> None:
    """As CSV files and many parquet files hold them."""
    assert turns({"messages": json.dumps([USER, ANSWER])}) == [("user", "why"), ("assistant", "yes")]
    assert turns({"conversations": json.dumps(HUMAN)}) == [("user", "why"), ("assistant", "yes")]
    own = {"chat": json.dumps([{"who": "human", "content": "why"}, {"who": "ai", "content": "yes"}])}
    assert turns(own, columns={"messages": "chat", "role": "who"}) == [("user", "why"), ("assistant", "yes")]
    tools = [{"role": "system", "content": "hm", "tools": '[{"name": "sum"}]'}, USER, ANSWER]
    assert read({"messages": json.dumps(tools)}).tools == ({"name": "sum"},)
    with pytest.raises(RowError, match="messages are not JSON"):
        read({"messages": "[{'role': 'user'}]"})


def test_names_of_roles_however_they_are_written() -> None:
    for asks, answers in (("Human", "AI"), ("User ", " Assistant\n"), ("human", "chatgpt"), ("human", "bing")):
        named = [{"role": asks, "content": "why"}, {"role": answers, "content": "yes"}]
        assert turns({"messages": named}) == [("user", "why"), ("assistant", "yes")]
