"""Converts Anthropic's content blocks and the items of OpenAI's Responses API to OpenAI's chat messages.

- Anthropic: user messages contain `tool_result` blocks, assistant messages `tool_use` blocks.
- Responses: calls, their results and reasoning are separate items, which have a `type` and no role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from honed.data.example import RowError

Turn = Mapping[str, Any]
_FLAGS = ("train", "weight")


def as_messages(turns: Sequence[Any]) -> Sequence[Any]:
    """Converts blocks and items that are calls, results or reasoning to (parts of) messages; other turns are unchanged.

    Raises:
        RowError: an item has an unknown type, or is in a place that messages cannot express.
    """
    if not any(isinstance(turn, Mapping) and (_is_item(turn) or _has_tool_blocks(turn)) for turn in turns):
        return turns
    messages: list[Any] = []
    thought = ""  # the reasoning that belongs to the next message or call
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise RowError("message is not an object", f"found {turn!r:.80}")
        if _is_item(turn) and turn["type"] == "reasoning":
            thought += _thought(turn)
            continue
        read = [_of_item(turn)] if _is_item(turn) else _apart(turn) if _has_tool_blocks(turn) else [turn]
        messages += [_with_reasoning(read[0], thought), *read[1:]] if thought else read
        thought = ""
    if thought:
        raise RowError("reasoning without an answer", f"the last item is reasoning: {thought!r:.60}")
    return messages


def _is_item(turn: Turn) -> bool:
    return turn.get("role") is None and turn.get("from") is None and isinstance(turn.get("type"), str)


def _has_tool_blocks(turn: Turn) -> bool:
    content = turn.get("content")
    return isinstance(content, (list, tuple)) and any(_type(block) in ("tool_use", "tool_result") for block in content)


def _type(block: Any) -> Any:
    return block.get("type") if isinstance(block, Mapping) else None


def _with_reasoning(turn: Turn, thought: str) -> Turn:
    if (role := turn.get("role")) not in ("assistant", "function_call"):
        raise RowError("reasoning without an answer", f"it is followed by a message of the role {role!r}")
    return {**turn, "reasoning_content": thought}


def _apart(turn: Turn) -> list[Turn]:
    """The turn with its calls under `tool_calls`, or with its results as separate messages, in order."""
    if any(_type(block) == "tool_result" for block in turn["content"]):
        kinds = groupby(turn["content"], key=lambda block: _type(block) == "tool_result")
        parts = [(are_results, list(blocks)) for are_results, blocks in kinds]
        made = [[_result_of(turn, b) for b in part] if are else [{**turn, "content": part}] for are, part in parts]
        return [message for messages in made for message in messages]
    calls = [block for block in turn["content"] if _type(block) == "tool_use"]
    said = [block for block in turn["content"] if _type(block) != "tool_use"]
    if list(turn["content"]) != said + calls:
        raise RowError("text behind a tool call", "chat templates write the calls of a message last: make it two")
    written = [{"id": call.get("id"), "name": call["name"], "arguments": call["input"]} for call in calls]
    return [{**turn, "content": said or None, "tool_calls": written}]


def _result_of(turn: Turn, block: Turn) -> Turn:
    further = {key: value for key, value in block.items() if key not in ("type", "tool_use_id", "content")}
    return _result(block.get("tool_use_id"), block.get("content"), {**further, **_flags(turn)})


def _result(ident: Any, content: Any, further: Turn) -> Turn:
    return {**further, "role": "tool", "tool_call_id": ident, "content": content or ""}


def _of_item(item: Turn) -> Turn:
    if (read := _ITEMS.get(item["type"])) is None:
        known = ", ".join(("reasoning", *_ITEMS))
        fix = "data.columns='{role: type}' reads it as a role"
        raise RowError("message without a role", f"of type {item['type']!r}; items known: {known}. {fix}")
    return read(item)


def _call_item(item: Turn) -> Turn:
    call = {"id": item.get("call_id"), "name": item["name"], "arguments": item["arguments"]}
    return {**_flags(item), "role": "function_call", "content": call}


def _result_item(item: Turn) -> Turn:
    return _result(item.get("call_id"), item["output"], _flags(item))


def _flags(item: Turn) -> dict[str, Any]:
    return {key: item[key] for key in _FLAGS if item.get(key) is not None}


# Items of type `message` have a role, so they are not listed.
_ITEMS: dict[str, Callable[[Turn], Turn]] = {"function_call": _call_item, "function_call_output": _result_item}


def _thought(item: Turn) -> str:
    """The reasoning itself, else its summary; "" if the item has neither."""
    if text := "".join(part["text"] for part in item.get("content") or ()):
        return text
    if text := "\n\n".join(part["text"] for part in item.get("summary") or ()):
        return text
    if item.get("encrypted_content"):
        raise RowError("encrypted reasoning", "nobody else can read it: take such items out of the row")
    return ""
