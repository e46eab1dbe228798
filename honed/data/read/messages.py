"""Reads the messages of a row as `Message`s, whatever names its dataset uses; also their tools and tool calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from honed.data.example import REASONING, ROLES, Message, RowError
from honed.data.read.blocks import as_messages

_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("thinking", "reasoning")
_MEDIA_PARTS = ("image", "image_url", "input_image", "video", "video_url", "audio", "audio_url", "input_audio")
LARGEST_WEIGHT = 3.4e38  # weights are stored as float32, in which larger ones are infinite
_CALLS = ("function_call", "tool_call")  # roles of messages that contain only a call
_DEEPEST = 100  # levels of lists and objects; code that walks them recurses a few times per level
PLAIN_ROLES = {"system", "user", "assistant", "tool"}
_READ = {"role", "from", "content", "value", "train", "weight", "tool_calls", "function_call", "tools"}


def read_messages(turns: Any) -> tuple[Message, ...]:
    """Reads all turns of a conversation.

    Raises:
        RowError: there are no turns, or one is not a valid message.
    """
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise RowError("no messages", f"expected a list of messages, found {turns!r:.80}")
    if all(map(_is_plain, turns)):  # true of most conversations: skips all other checks
        return checked([Message(role=turn["role"], content=turn["content"]) for turn in turns])
    turns = as_messages(turns)
    messages = _with_calls_of_their_turn([_read_message(turn) for turn in turns], turns)
    return checked(_with_analysis_as_thinking(messages))


def parsed_turns(turns: Any) -> Any:
    """Parses the turns of a conversation if they are JSON text; other values are unchanged.

    Raises:
        RowError: it starts like a list but is not JSON.
    """
    listed = isinstance(turns, str) and turns.lstrip().startswith("[")
    return _from_json(turns, "messages are not JSON") if listed else turns


def checked(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, if they have an answer and no answer is empty.

    Raises:
        RowError: otherwise.
    """
    for number, message in enumerate(messages, start=1):
        if message.role == "assistant" and not message.content.strip() and not message.extra.get("tool_calls"):
            raise RowError("empty answer", f"message {number} (assistant) holds no text")
    if not any(message.role == "assistant" for message in messages):
        raise RowError("nothing to train", "the conversation has no assistant message")
    return tuple(messages)


def read_tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    """Tools in the form that templates expect; a bare function schema is put under `function`.

    Raises:
        RowError: they are not a list of objects, or JSON of one.
    """
    tools = _from_json(tools, "tools are not JSON") if isinstance(tools, str) and tools.strip() else tools
    if tools is None or (isinstance(tools, (str, Sequence)) and not tools):
        return ()
    tools = [tools] if isinstance(tools, Mapping) else tools
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("tools are not a list of objects", f"found {tools!r:.80}")
    return tuple(_wrapped(_with_parameters(tool), "parameters") for tool in tools)


def read_template_arguments(arguments: Any) -> dict[str, Any]:
    """A row's own variables of the chat template; null, with which Arrow fills absent keys up, is left out.

    Raises:
        RowError: they are no object, also not as JSON.
    """
    if isinstance(arguments, str) and arguments.strip():
        arguments = _from_json(arguments, "chat_template_kwargs are not JSON")
    if not arguments:
        return {}
    if not isinstance(arguments, Mapping):
        raise RowError("chat_template_kwargs are not an object", f"found {arguments!r:.80}")
    check_depth(arguments)
    return {str(key): value for key, value in arguments.items() if value is not None}


def _with_parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Renames Anthropic's `input_schema` of a tool to `parameters`."""
    if tool.get("input_schema") is None or tool.get("parameters") is not None:
        return tool
    rest = {key: value for key, value in tool.items() if key not in ("input_schema", "parameters")}
    return {**rest, "parameters": tool["input_schema"]}


def check_depth(*values: Any) -> None:
    """Refuses values nested so deeply that templates, which walk them recursively, would fail.

    Raises:
        RowError: lists and objects are nested more than 100 deep.
    """
    level: list[Any] = list(values)
    for _ in range(_DEEPEST):
        nested = [one for one in level if isinstance(one, (Mapping, list, tuple))]
        level = [inner for one in nested for inner in (one.values() if isinstance(one, Mapping) else one)]
        if not level:
            return
    raise RowError("nested too deeply", f"more than {_DEEPEST} lists and objects inside each other")


def read_text(value: Any, key: str) -> str:
    """A text, or the text of OpenAI's typed parts.

    Raises:
        RowError: it is something else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(_kind(part) in _TEXT_PARTS for part in value):
        return "".join(part["text"] for part in value)
    raise RowError("text expected", f"`{key}` holds {type(value).__name__}: {value!r:.80}")


def _read_message(turn: Any) -> Message:
    if _is_plain(turn):
        return Message(role=turn["role"], content=turn["content"])
    if not isinstance(turn, Mapping):
        raise RowError("message is not an object", f"found {turn!r:.80}")
    # not get(key, default): Arrow fills keys of other rows with None
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    name = _name(turn)
    role = ROLES.get(name) or _unknown_role(turn)
    extra = {key: value for key, value in turn.items() if key not in _READ and value is not None}
    calls = _tool_calls(turn)
    if name in _CALLS and not calls:
        calls, content = _calls_in(content), ""
    if calls:
        extra["tool_calls"] = calls
    text, reasoning, parts = ("", "", ()) if content is None and calls else _content(content)
    if reasoning and not any(extra.get(key) for key in REASONING):
        extra["reasoning_content"] = reasoning
    return Message(role=role, content=text, train=_train(turn), weight=_weight(turn), extra=extra, parts=parts)


def _name(turn: Mapping[Any, Any]) -> str:
    """The author of the message in the dataset's own words, or "" if not given."""
    name = turn["role"] if turn.get("role") is not None else turn.get("from")
    return name.strip().lower() if isinstance(name, str) else ""


def _unknown_role(turn: Mapping[Any, Any]) -> NoReturn:
    found = turn["role"] if turn.get("role") is not None else turn.get("from")
    if found is not None:
        raise RowError("unknown role", f"found {found!r}; known: {', '.join(ROLES)}")
    seen = ", ".join(map(str, turn)) or "none"
    fix = "data.columns='{role: KEY, content: KEY}' names them"
    raise RowError("message without a role", f"keys seen: {seen}. {fix}")


def _is_plain(turn: Any) -> bool:
    if not isinstance(turn, Mapping) or len(turn) != 2:
        return False
    role, content = turn.get("role"), turn.get("content")
    return isinstance(content, str) and isinstance(role, str) and role in PLAIN_ROLES


def _train(turn: Mapping[str, Any]) -> bool | None:
    train = turn.get("train")
    if train not in (None, True, False):
        raise RowError("train is not true or false", f"found {train!r:.80}")
    return None if train is None else bool(train)


def _weight(turn: Mapping[str, Any]) -> float | None:
    weight = turn.get("weight")
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= LARGEST_WEIGHT:
        raise RowError("weight is not a number from 0 on", f"found {weight!r:.80}")
    return float(weight)


def _content(content: Any) -> tuple[str, str, tuple[Any, ...]]:
    """Text, reasoning, and all parts if there are other kinds than these two."""
    if isinstance(content, str):
        return content, "", ()
    if not isinstance(content, Sequence) or not content:
        return read_text(content, "content"), "", ()
    kinds = [_kind(part) for part in content]
    if None in kinds:
        read_text(content, "content")
    parts = list(zip(kinds, content, strict=True))
    text = "".join(part["text"] for kind, part in parts if kind in _TEXT_PARTS)
    reasoning = "".join(part[kind] for kind, part in parts if kind in _REASONING_PARTS)
    return text, reasoning, tuple(content) if any(kind in _MEDIA_PARTS for kind in kinds) else ()


def _kind(part: Any) -> str | None:
    """The type of a typed part; None if it is unknown or the part does not hold what its type requires."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        return None
    if kind in _TEXT_PARTS or kind in _REASONING_PARTS:
        return kind if isinstance(part.get("text" if kind in _TEXT_PARTS else kind), str) else None
    return kind if kind in _MEDIA_PARTS else None


def _tool_calls(turn: Mapping[str, Any]) -> list[Any]:
    """`tool_calls`, or the one `function_call` of older data."""
    calls = turn.get("tool_calls")
    if calls is None or (isinstance(calls, (str, Sequence)) and not calls):
        calls = turn.get("function_call")
    return [] if calls is None else _calls_in(calls)


def _calls_in(calls: Any) -> list[Any]:
    """Tool calls from JSON or objects, one or several; arguments become objects where possible."""
    calls = _from_json(calls, "tool calls are not JSON") if isinstance(calls, str) else calls
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, Sequence) or not all(isinstance(call, Mapping) and call for call in calls):
        raise RowError("tool calls are not objects", f"found {calls!r:.80}")
    return [_call(_wrapped(call, "arguments")) for call in calls]


def _wrapped(function: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Wraps a bare function in OpenAI's form: {"type": "function", "function": {...}}."""
    if "name" in function and key in function and function.get("function") is None:
        bare = {k: v for k, v in function.items() if k not in ("id", "type", "function")}
        ident = {"id": function["id"]} if function.get("id") is not None else {}
        return {**ident, "type": "function", "function": bare}
    return function


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call without null keys, with its arguments parsed."""
    call = {key: value for key, value in call.items() if value is not None}
    function = call.get("function")
    if not isinstance(function, Mapping):
        return call
    function = {key: value for key, value in function.items() if value is not None}
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError("tool call without a name", f"found {call!r:.80}")
    if isinstance(arguments := function.get("arguments"), str):
        function["arguments"] = _object_or_text(arguments)
    return {**call, "function": function}


def _object_or_text(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _from_json(text: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(reason, f"{error}, in {text!r:.60}") from None


def _with_calls_of_their_turn(messages: list[Message], turns: Sequence[Any]) -> list[Message]:
    """Merges messages that contain only a call into the assistant turn before them, be it text or a call."""
    if not any(message.extra for message in messages):
        return messages
    merged: list[Message] = []
    for message, turn in zip(messages, turns, strict=True):
        before = merged[-1] if merged else None
        calls = message.extra.get("tool_calls") if _name(turn) in _CALLS else None
        both_reason = before is not None and before.reasoning is not None and message.reasoning is not None
        if calls and before is not None and _flags(before) == _flags(message) and not both_reason:
            calls = [*before.extra.get("tool_calls", ()), *calls]
            merged[-1] = replace(before, extra={**message.extra, **before.extra, "tool_calls": calls})
        else:
            merged.append(message)
    return merged


def _flags(message: Message) -> tuple[str, bool | None, float | None]:
    return message.role, message.train, message.weight


def _with_analysis_as_thinking(messages: list[Message]) -> list[Message]:
    """Merges a separate message of Harmony's analysis channel into the answer that follows, as its thinking."""
    merged: list[Message] = []
    for message in messages:
        before = merged[-1] if merged else None
        thought = before is not None and before.role == "assistant" and before.extra.get("channel") == "analysis"
        if before is not None and thought and message.role == "assistant" and message.reasoning is None:
            merged[-1] = replace(message, extra={**message.extra, "thinking": before.content})
        else:
            merged.append(message)
    return merged
