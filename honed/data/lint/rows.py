"""Faults in the shape of a row: the order of roles, empty messages, tool calls; and what a row says, as plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from honed.data.example import Conversation, Document, Example, Message, PromptCompletion
from honed.data.lint.text import ControlTokens, Fault

_TAGGED_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_QUESTIONS = {"user", "system"}
_TRAIN_FLAGS = {"loss", "loss_mask", "trainable"}  # of other tools, in place of `train` or `weight`


def said(example: Example) -> list[str]:
    """The texts of a row; a row of token ids has none."""
    if isinstance(example, Conversation):
        return [message.content for message in example.messages]
    if isinstance(example, PromptCompletion):
        return [example.prompt, example.completion]
    return [example.text] if isinstance(example, Document) else []


def thought_and_called(example: Example) -> list[str]:
    """The reasoning and the tool calls of a conversation."""
    if not isinstance(example, Conversation):
        return []
    with_more = [message for message in example.messages if message.extra]
    thoughts = [message.reasoning for message in with_more if message.reasoning]
    calls = [message.extra["tool_calls"] for message in with_more if message.extra.get("tool_calls")]
    return thoughts + [json.dumps(call, ensure_ascii=False, default=str) for call in calls]


def body(example: Example) -> str:
    """What two rows must share to be the same: all but system prompts and the tools offered."""
    if isinstance(example, Conversation):
        texts = [message.content for message in example.messages if message.role != "system"]
        return "\n".join([*texts, *thought_and_called(example)])
    return "\n".join(said(example))


def question(example: Example) -> str:
    """What the user says before the first answer; "" for rows without a question."""
    if isinstance(example, PromptCompletion):
        return example.prompt.strip()
    if not isinstance(example, Conversation):
        return ""
    asked: list[str] = []
    for message in example.messages:
        if message.role == "assistant":
            break
        if message.role == "user":
            asked.append(message.content)
    return "\n".join(asked).strip()


def answer(example: Example) -> str | None:
    """The last answer in words; None where there is none."""
    if isinstance(example, PromptCompletion):
        return example.completion
    if not isinstance(example, Conversation):
        return None
    last = next((message for message in reversed(example.messages) if message.role == "assistant"), None)
    return last.content if last is not None and not last.extra.get("tool_calls") else None


def system_prompt(example: Example) -> str | None:
    """The system prompt of a conversation, "" where it has none; None for rows that are no conversations."""
    if not isinstance(example, Conversation):
        return None
    first = example.messages[0]
    return first.content if first.role == "system" else ""


def row_faults(example: Example, control: ControlTokens) -> Iterator[Fault]:
    """Faults of a conversation's shape; other rows have none."""
    if not isinstance(example, Conversation):
        return
    messages = example.messages
    if subject := role_fault(messages):
        yield "role_order", subject, ", ".join(message.role for message in messages[:8])
    for number, message in enumerate(messages, start=1):
        if message.role in _QUESTIONS and not message.content.strip() and not message.parts:
            yield "empty_message", f"empty {message.role} message", f"message {number}"
        if token := control.find(message.content):
            yield "control_token", f"in {_of(message.role)}", f"{token} in message {number}"
        if problem := call_fault(message):
            yield "tool_call", "", f"message {number}: {problem}"
        if message.role == "assistant" and message.content.rfind("<think>") > message.content.rfind("</think>"):
            yield "open_reasoning", "", f"message {number}: {message.content[-60:]!r}"
        for key in _TRAIN_FLAGS.intersection(message.extra):
            yield "train_flag", f"`{key}`", f"message {number}: {message.extra[key]!r:.60}"


def role_fault(messages: Sequence[Message]) -> str:
    """What is wrong with the order of roles, the first fault only; "" where nothing is."""
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        return "system prompt after the start"
    turns = roles[1:] if roles[0] == "system" else roles
    if turns[:1] == ["assistant"]:
        return "begins with an answer"
    for first, second in pairwise(turns):
        if first == second and first in ("user", "assistant"):
            return f"two {first} turns in a row"
    if turns[-1:] == ["user"]:
        return "ends with a question"
    return ""


def call_fault(message: Message) -> str:
    """Why a message's tool calls cannot be read as JSON; "" where they can."""
    if message.role != "assistant":
        return ""
    for call in message.extra.get("tool_calls") or ():
        if problem := _arguments_fault(call):
            return problem
    if "<tool_call>" in message.content:
        for text in _TAGGED_CALL.findall(message.content):
            if problem := _json_fault(text):
                return problem
    return ""


def _arguments_fault(call: Any) -> str:
    if not isinstance(call, Mapping):
        return f"a call is no object: {call!r:.60}"
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, Mapping) else call.get("arguments")
    if arguments is None or isinstance(arguments, Mapping):
        return ""
    return _json_fault(arguments) if isinstance(arguments, str) else f"arguments are {type(arguments).__name__}"


def _json_fault(text: str) -> str:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"{error}: {text.strip()!r:.60}"
    return "" if isinstance(found, dict) else f"not an object: {text.strip()!r:.60}"


def _of(role: str) -> str:
    names = {"user": "a question", "assistant": "an answer", "system": "a system prompt", "tool": "a tool's result"}
    return names.get(role, role)
