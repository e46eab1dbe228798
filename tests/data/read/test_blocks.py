"""Rows as Anthropic's and OpenAI's other APIs write them, held against the same talk as chat messages."""

from __future__ import annotations

from typing import Any

import pytest
from reading import ANSWER, USER, read

from honed.data.example import RowError

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rome or Oslo?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Two calls.", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "sky", "arguments": {"city": "Rome"}}},
            {"id": "b", "type": "function", "function": {"name": "sky", "arguments": {"city": "Oslo"}}},
        ]},
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
        {"role": "tool", "tool_call_id": "b", "content": "rain"},
        {"role": "assistant", "content": "Rome.", "reasoning_content": "Sun wins."},
    ],
    "tools": [{"type": "function", "function": {"name": "sky", "description": "Now.", "parameters": SCHEMA}}],
}  # fmt: skip
ANTHROPIC = {
    "system": [{"type": "text", "text": "Be brief."}],
    "tools": [{"name": "sky", "description": "Now.", "input_schema": SCHEMA}],
    "messages": [
        {"role": "user", "content": "Rome or Oslo?"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Two calls.", "signature": "Eq=="},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "a", "name": "sky", "input": {"city": "Rome"}},
            {"type": "tool_use", "id": "b", "name": "sky", "input": {"city": "Oslo"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": "sun"},
            {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "rain"}]},
        ]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Sun wins.", "signature": "Er=="}, {"type": "text", "text": "Rome."},
        ]},
    ],
}  # fmt: skip
ASKED = [{"role": "user", "content": [{"type": "input_text", "text": "Rome or Oslo?"}]}]
ANSWERED = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Two calls."}], "encrypted_content": "Eq=="},
    {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
    {"type": "function_call", "call_id": "a", "name": "sky", "arguments": '{"city": "Rome"}', "status": "completed"},
    {"type": "function_call", "call_id": "b", "name": "sky", "arguments": '{"city": "Oslo"}'},
    {"type": "function_call_output", "call_id": "a", "output": "sun"},
    {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "rain"}]},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Sun wins."}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "Rome."}]},
]
TOOLS = [{"type": "function", "name": "sky", "description": "Now.", "parameters": SCHEMA}]
RESPONSES = {"messages": [*ASKED, *ANSWERED], "tools": TOOLS, "system": "Be brief."}


@pytest.mark.parametrize("row", [ANTHROPIC, RESPONSES], ids=["anthropic", "responses"])
def test_the_same_talk_is_the_same_conversation(row: dict[str, Any]) -> None:
    assert read(row) == read(CHAT)


def test_nothing_of_the_row_is_changed() -> None:
    before = repr((ANTHROPIC, RESPONSES))
    read(ANTHROPIC)
    read(RESPONSES)
    assert repr((ANTHROPIC, RESPONSES)) == before


def test_a_logged_response() -> None:
    """What was asked is context, as in any row of prompt and completion."""
    row = {"input": ASKED, "output": ANSWERED, "tools": TOOLS, "instructions": "Be brief."}
    talk = read(row, columns={"prompt": "input", "completion": "output", "system": "instructions"})
    expected = {"prompt": CHAT["messages"][1:2], "completion": CHAT["messages"][2:], "system": "Be brief."}
    assert talk == read({**expected, "tools": CHAT["tools"]})
    assert [message.train for message in talk.messages] == [None, False, None, None, None, None]


def test_words_beside_results_stay_where_they_stand() -> None:
    result = {"type": "tool_result", "tool_use_id": "a", "content": "sun", "is_error": False}
    text = {"type": "text", "text": "Well?"}
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "sky", "input": {}}]}
    for blocks, roles in (([result, text], ["tool", "user"]), ([text, result], ["user", "tool"])):
        talk = read({"messages": [USER, call, {"role": "user", "content": blocks}, ANSWER]}).messages
        assert [message.role for message in talk[2:-1]] == roles
        found = {message.role: message for message in talk[2:-1]}
        assert (found["user"].content, found["tool"].content) == ("Well?", "sun")
        assert found["tool"].extra == {"tool_call_id": "a", "is_error": False}


def test_reasoning_between_two_calls_is_not_lost() -> None:
    def call(ident: str) -> list[dict[str, Any]]:
        thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": ident}]}
        return [thought, {"type": "function_call", "call_id": ident, "name": "sky", "arguments": "{}"}]

    talk = read({"messages": [USER, *call("a"), *call("b"), ANSWER]}).messages
    assert [(message.role, message.reasoning) for message in talk[1:3]] == [("assistant", "a"), ("assistant", "b")]


def test_flags_are_those_of_the_turn_or_item() -> None:
    call = {"type": "function_call", "call_id": "a", "name": "sky", "arguments": "{}", "weight": 0.5}
    result = {"type": "function_call_output", "call_id": "a", "output": "sun", "train": False}
    blocks = [{"type": "tool_use", "id": "b", "name": "sky", "input": {}}]
    back = {"role": "user", "train": False, "content": [{"type": "tool_result", "tool_use_id": "b", "content": "rain"}]}
    own = {"role": "assistant", "train": False, "content": blocks}
    talk = read({"messages": [USER, call, result, own, back, ANSWER]}).messages
    assert [(m.role, m.train, m.weight) for m in talk[1:-1]] == [
        ("assistant", None, 0.5), ("tool", False, None), ("assistant", False, None), ("tool", False, None),
    ]  # fmt: skip


def test_roles_under_type_are_read_as_the_error_advises() -> None:
    """As LangChain has them."""
    row = {"messages": [{"type": "human", "content": "why"}, {"type": "ai", "content": "yes"}]}
    with pytest.raises(RowError, match=r"data\.columns='\{role: type\}'"):
        read(row)
    assert [message.role for message in read(row, columns={"role": "type"}).messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([{"type": "web_search_call", "id": "w"}], "without a role: of type 'web_search_call'; items known: "),
        ([{"type": "reasoning", "summary": [], "encrypted_content": "Eq=="}, ANSWER], "encrypted reasoning"),
        ([ANSWER, {"type": "reasoning", "content": [{"text": "hm"}]}], "reasoning without an answer: the last item"),
        ([{"type": "reasoning", "content": [{"text": "hm"}]}, USER, ANSWER], "a message of the role 'user'"),
        ([{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "sky", "input": {}},
                                            {"type": "text", "text": "So."}]}], "text behind a tool call"),
        ([{"type": "function_call", "call_id": "a"}], "not a messages row: KeyError: 'name'"),
        ([{"role": "assistant", "content": [{"type": "redacted_thinking", "data": "Eq=="}]}], "text expected"),
    ],
)  # fmt: skip
def test_what_messages_have_no_place_for_is_refused(turns: list[Any], problem: str) -> None:
    with pytest.raises(RowError) as caught:
        read({"messages": [USER, *turns]})
    assert problem in str(caught.value)
