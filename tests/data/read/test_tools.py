"""Tools and tool calls, in every shape in which rows have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reading import ANSWER, USER, read

SUM = {"name": "sum", "arguments": {"a": 1}}
FUNCTION = {"type": "function", "function": SUM}


@pytest.mark.parametrize(
    ("turn", "calls"),
    [
        ({"from": "function_call", "value": json.dumps(SUM)}, [FUNCTION]),
        ({"from": "function_call", "value": json.dumps([SUM, SUM])}, [FUNCTION, FUNCTION]),
        ({"role": "tool_call", "content": json.dumps(SUM)}, [FUNCTION]),
        ({"role": "assistant", "content": "", "tool_calls": json.dumps([FUNCTION])}, [FUNCTION]),
        ({"role": "assistant", "content": None, "tool_calls": [SUM]}, [FUNCTION]),
        ({"role": "assistant", "content": None, "function_call": {**SUM, "arguments": '{"a": 1}'}}, [FUNCTION]),
        ({"role": "assistant", "tool_calls": [{"id": "x", "type": "function", "index": None,
                                              "function": {"name": "sum", "arguments": '{"a": 1}'}}]},
         [{"id": "x", **FUNCTION}]),
        # not an object: the template gets the text
        ({"role": "assistant", "tool_calls": [{"name": "sum", "arguments": "[1]"}]},
         [{"type": "function", "function": {"name": "sum", "arguments": "[1]"}}]),
    ],
)  # fmt: skip
def test_tool_calls(turn: dict[str, Any], calls: list[Any]) -> None:
    result = {"role": "tool", "content": "3", "tool_call_id": "x", "name": "sum"}
    talk = read({"messages": [USER, turn, result, ANSWER]})
    assert (talk.messages[1].role, talk.messages[1].content) == ("assistant", "")
    assert talk.messages[1].extra["tool_calls"] == calls
    assert talk.messages[2].as_template_input() == result


def test_calls_that_are_messages_of_their_own_belong_to_the_turn_before() -> None:
    """As ms-swift's agents have them: thought, call and call are one turn of the assistant."""
    thought = {"role": "assistant", "content": "<think>hm</think>"}
    call, result = {"role": "tool_call", "content": json.dumps(SUM)}, {"role": "tool_response", "content": "3"}
    talk = read({"messages": [USER, thought, call, call, result, call, result, ANSWER]}).messages
    assert [(m.role, m.content, len(m.extra.get("tool_calls", ()))) for m in talk] == [
        ("user", "why", 0), ("assistant", "<think>hm</think>", 2), ("tool", "3", 0), ("assistant", "", 1),
        ("tool", "3", 0), ("assistant", "yes", 0),
    ]  # fmt: skip
    apart = read({"messages": [USER, {**thought, "train": False}, call, result, ANSWER]}).messages
    assert [(m.role, m.train) for m in apart[1:3]] == [("assistant", False), ("assistant", None)]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER], "tools": [{"name": "sum", "parameters": {}}]},
        {"messages": [USER, ANSWER], "tools": '[{"name": "sum", "parameters": {}}]'},
        {"messages": [USER, ANSWER], "functions": [{"name": "sum", "parameters": {}}]},
        {"conversations": [{"role": "system", "content": "", "tools": '[{"name": "sum", "parameters": {}}]'},
                           USER, ANSWER]},
        {"messages": [USER, ANSWER], "tools": {"type": "function", "function": {"name": "sum", "parameters": {}}}},
    ],
)  # fmt: skip
def test_tools(row: dict[str, Any]) -> None:
    assert read(row).tools == ({"type": "function", "function": {"name": "sum", "parameters": {}}},)


@pytest.mark.parametrize("tools", [None, "", [], "[]"])
def test_no_tools(tools: Any) -> None:
    assert read({"messages": [USER, ANSWER], "tools": tools}).tools == ()


def test_all_tool_calls_of_glaive(shared_data: Path) -> None:
    rows = json.loads((shared_data / "lf_glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))
    talks = [read(row) for row in rows]
    calls = [m.extra["tool_calls"] for talk in talks for m in talk.messages if "tool_calls" in m.extra]
    assert (len(talks), len(calls)) == (300, 211)
    assert all(isinstance(call["function"]["arguments"], dict) for [call] in calls)
    assert sum(bool(talk.tools) for talk in talks) == 191
