"""Calls are held against the tools of their row, and results against calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.data.example import Conversation, Message, Source
from honed.data.lint.calls import call_faults
from honed.data.lint.lint import check
from honed.data.prepare.options import PrepareOptions
from honed.data.read.formats import ReadOptions, read_example

SCHEMA = {"type": "object", "properties": {"city": {}, "day": {}}, "required": ["city"]}
SKY = {"type": "function", "function": {"name": "sky", "parameters": SCHEMA}}
USER = {"role": "user", "content": "Rome?"}


def called(name: str = "sky", arguments: Any = None, **call: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{**call, "function": {"name": name, "arguments": arguments}}]}


def result(ident: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": ident, "content": "sun"}


def faults(*turns: dict[str, Any], tools: Any = (SKY,)) -> list[tuple[str, str, str]]:
    row = {"messages": [USER, *turns], "tools": list(tools)}
    example = read_example(row, Source(file="f", row=1), ReadOptions())
    assert isinstance(example, Conversation)
    return list(call_faults(example))


ROME = {"city": "Rome"}
TAGGED = '<tool_call>{"name": "sky", "arguments": {"town": "Rome"}}</tool_call>'


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([called(arguments=ROME)], []),
        ([called(arguments=json.dumps(ROME))], []),
        ([called("sea", ROME)], [("call of a tool that is not offered", "message 2: 'sea'; offered: sky")]),
        ([called(arguments=None)], [("required argument left out", "message 2: sky without 'city'")]),
        ([called(arguments={**ROME, "at": 3})], [("argument that the tool does not have", "message 2: sky with 'at'")]),
        (
            [{"role": "assistant", "content": TAGGED}],
            [
                ("required argument left out", "message 2: sky without 'city'"),
                ("argument that the tool does not have", "message 2: sky with 'town'"),
            ],
        ),
        ([called(arguments=ROME, id="a"), result("a")], []),
        ([called(arguments=ROME, id="a"), result("b")], [("result of no call", "message 3: 'b'")]),
        ([called(arguments=ROME), result("b")], []),  # calls without ids
    ],
)  # fmt: skip
def test_what_does_not_fit(turns: list[dict[str, Any]], expected: list[tuple[str, str]]) -> None:
    assert faults(*turns) == [("tool_misfit", subject, detail) for subject, detail in expected]


def test_what_a_tool_leaves_open_is_not_held_against_a_call() -> None:
    for schema in ({}, {"properties": {"city": {}}, "additionalProperties": True}):
        tool = {"type": "function", "function": {"name": "sky", "parameters": schema}}
        assert faults(called(arguments={"hour": 3}), tools=[tool]) == []
    assert faults(called("sea", ROME), tools=[]) == []


def test_it_is_a_finding_of_the_check() -> None:
    rows = [{"messages": [USER, called("sea", ROME)], "tools": [SKY]}, {"messages": [USER, called(arguments=ROME)]}]
    [finding] = check(rows, PrepareOptions()).findings
    assert (finding.kind.name, finding.count, finding.spots[0].source) == ("tool_misfit", 1, "row:1")


@pytest.mark.parametrize(
    ("answer", "is_open"),
    [
        ('<tool_call>\n{"name": "sky"}', True),
        ('<tool_call>{"name": "sky"}</tool_call><tool_call>{"name": "sk', True),
        ('<tool_call>{"name": "sky"}</tool_call>', False),
        ("write <tool_call> before a call", False),
    ],
)
def test_a_call_in_the_text_that_is_never_closed(answer: str, is_open: bool) -> None:
    found = faults({"role": "assistant", "content": answer}, tools=[])
    assert [kind for kind, _, detail in found if "never closed" in detail] == ["tool_call"] * is_open


def test_results_whose_tags_the_template_adds_again(tokenizer_with: Callable[..., Any]) -> None:
    """Hermes-style data bring `<tool_response>`, as Qwen's template does; a template without it must not be blamed."""
    template = (Path(__file__).parents[1] / "templates" / "families" / "qwen2.5.jinja").read_text(encoding="utf-8")
    turns = [called(arguments=ROME), {"role": "tool", "content": '<tool_response>\n{"sun": 1}\n</tool_response>'}]
    wrapped = {"messages": [USER, *turns, {"role": "assistant", "content": "sunny"}], "tools": [SKY]}
    plain = json.loads(json.dumps(wrapped).replace("<tool_response>\\n", "").replace("\\n</tool_response>", ""))
    [finding] = check([wrapped, plain], PrepareOptions(), tokenizer=tokenizer_with(template)).findings
    assert (finding.kind.name, finding.count, finding.spots[0].source) == ("wrapped_result", 1, "row:1")
    printing = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    printing += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    written = [{"role": "assistant", "content": '<tool_call>{"name": "sky"}</tool_call>'}, turns[1]]
    row = {"messages": [USER, *written, {"role": "assistant", "content": "sunny"}]}
    assert check([row], PrepareOptions(), tokenizer=tokenizer_with(printing)).findings == ()


def test_calls_of_glaive_fit_until_their_tools_are_renamed(shared_data: Path) -> None:
    path = shared_data / "lf_glaive_toolcall_en_demo.json"
    assert not [f for f in check(path, PrepareOptions()).findings if f.kind.name == "tool_misfit"]
    rows = json.loads(path.read_text(encoding="utf-8"))
    renamed = [{**row, "tools": row["tools"].replace('"name": "', '"name": "my_')} for row in rows]
    [finding] = [f for f in check(renamed, PrepareOptions()).findings if f.kind.name == "tool_misfit"]
    assert finding.subject == "call of a tool that is not offered" and finding.count > 100


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["sky", "{}", "city"])
keys = st.sampled_from(["id", "function", "name", "arguments", "parameters", "properties", "required", "city"])
values = st.recursive(leaves, lambda v: st.lists(v, max_size=2) | st.dictionaries(keys, v, max_size=3), max_leaves=6)


@settings(deadline=None, derandomize=True)
@given(calls=st.lists(values, max_size=2), tools=st.lists(st.dictionaries(keys, values, max_size=3), max_size=2))
def test_whatever_json_holds_nothing_is_raised(calls: list[Any], tools: list[dict[str, Any]]) -> None:
    message = Message(role="assistant", content=TAGGED, extra={"tool_calls": calls})
    found = call_faults(Conversation(messages=(message,), source=Source(file="f", row=1), tools=tuple(tools)))
    assert {kind for kind, _, _ in found} <= {"tool_call", "tool_misfit"}
