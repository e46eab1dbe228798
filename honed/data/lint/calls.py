"""Faults of tool calls: arguments that are not a JSON object; calls and results that match nothing in their row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from honed.data.example import Conversation, Example, Message
from honed.data.lint.text import Fault

_TAGGED_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_OPEN_CALL = re.compile(r"<tool_call>\s*\{(?!.*</tool_call>).*", re.DOTALL)
_TAG_TWICE = re.compile(r"(<tool_response>|<\|tool_response\|>)\s*\1")


def call_faults(conversation: Conversation) -> Iterator[Fault]:
    """Faults of a conversation's calls and their results. Without tools, calls are not compared with tools."""
    schemas = _schemas(conversation)
    idents: set[str] = set()
    for number, message in enumerate(conversation.messages, start=1):
        place = f"message {number}"
        for call in _calls(message):
            idents |= {str(call["id"])} if isinstance(call, Mapping) and call.get("id") is not None else set()
            if problem := _unreadable(call):
                yield "tool_call", "", f"{place}: {problem}"
            elif schemas:
                yield from (("tool_misfit", subject, f"{place}: {what}") for subject, what in _misfits(call, schemas))
        if message.role == "assistant" and (cut := _OPEN_CALL.search(message.content)):
            yield "tool_call", "", f"{place}: <tool_call> is never closed: {cut[0].strip()!r:.60}"
        answered = message.extra.get("tool_call_id") if message.role == "tool" else None
        if idents and answered is not None and str(answered) not in idents:
            yield "tool_misfit", "result of no call", f"{place}: {answered!r:.60}"


def wrapped_twice(example: Example, texts: Iterable[str]) -> str:
    """Returns the tag that a chat template puts around a tool's result that begins with it already; "" if none.

    Args:
        example: the row.
        texts: what the template makes of it.
    """
    if not isinstance(example, Conversation) or not any(message.role == "tool" for message in example.messages):
        return ""
    found = next((twice for text in texts if (twice := _TAG_TWICE.search(text))), None)
    return "" if found is None else found[1]


def _schemas(conversation: Conversation) -> dict[str, Mapping[str, Any]]:
    """Maps the name of each offered tool to the JSON schema of its arguments."""
    functions = [_mapping(tool.get("function")) or tool for tool in conversation.tools]
    return {f["name"]: _mapping(f.get("parameters")) for f in functions if isinstance(f.get("name"), str)}


def _calls(message: Message) -> list[Any]:
    """An assistant's calls, from the message's keys and its text: objects where parsable, else unchanged."""
    if message.role != "assistant":
        return []
    written = _TAGGED_CALL.findall(message.content) if "<tool_call>" in message.content else []
    return [*(message.extra.get("tool_calls") or ()), *map(_parsed, written)]


def _parsed(text: str) -> Any:
    """The JSON object that the text encodes, else the text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def _unreadable(call: Any) -> str:
    """Why a call, or its arguments, cannot be read as JSON; "" if they can."""
    if isinstance(call, str):
        return _json_fault(call)
    if not isinstance(call, Mapping):
        return f"a call is not an object: {call!r:.60}"
    arguments = _function_of(call).get("arguments")
    if arguments is None or isinstance(arguments, Mapping):
        return ""
    return _json_fault(arguments) if isinstance(arguments, str) else f"arguments are {type(arguments).__name__}"


def _json_fault(text: str) -> str:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"{error}: {text.strip()!r:.60}"
    return "" if isinstance(found, dict) else f"not an object: {text.strip()!r:.60}"


def _misfits(call: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Mismatches between a call and its tool: the kind of fault, and what was found."""
    function = _function_of(call)
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        return
    if (schema := schemas.get(name)) is None:
        yield "call of a tool that is not offered", f"{name!r}; offered: {', '.join(schemas)}"
        return
    given = _parsed(arguments) if isinstance(arguments, str) else arguments or {}
    required = schema.get("required")
    for key in required if isinstance(required, (list, tuple)) else ():
        if isinstance(key, str) and key not in given:
            yield "required argument left out", f"{name} without {key!r}"
    known = _mapping(schema.get("properties"))
    if known and not schema.get("additionalProperties"):
        for key in given:
            if key not in known:
                yield "argument that the tool does not have", f"{name} with {key!r}"


def _function_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(call.get("function")) or call


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
