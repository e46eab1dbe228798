"""Problems in the shape of a row (order of roles, empty messages, flags), and a row's contents as plain text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

from honed.data.example import Conversation, Document, Example, Message, PromptCompletion
from honed.data.lint.calls import call_faults
from honed.data.lint.text import ControlTokens, Fault

_QUESTIONS = {"user", "system"}
_TRAIN_FLAGS = {"loss", "loss_mask", "trainable"}  # other tools' names for `train` or `weight`


def said(example: Example) -> list[str]:
    """Returns the texts of a row; a row of token ids has none."""
    if isinstance(example, Conversation):
        return [message.content for message in example.messages]
    if isinstance(example, PromptCompletion):
        return [example.prompt, example.completion]
    return [example.text] if isinstance(example, Document) else []


def thought_and_called(example: Example) -> list[str]:
    """Returns the reasoning and the tool calls of a conversation."""
    if not isinstance(example, Conversation):
        return []
    with_more = [message for message in example.messages if message.extra]
    thoughts = [message.reasoning for message in with_more if message.reasoning]
    calls = [message.extra["tool_calls"] for message in with_more if message.extra.get("tool_calls")]
    return thoughts + [json.dumps(call, ensure_ascii=False, default=str) for call in calls]


def body(example: Example) -> str:
    """Returns what makes two rows duplicates: everything except system prompts and available tools."""
    if isinstance(example, Conversation):
        texts = [message.content for message in example.messages if message.role != "system"]
        return "\n".join([*texts, *thought_and_called(example)])
    return "\n".join(said(example))


def question(example: Example) -> str:
    """Returns what the user says before the first answer; "" for rows without a question."""
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
    """Returns the text of the last answer; None if there is none."""
    if isinstance(example, PromptCompletion):
        return example.completion
    if not isinstance(example, Conversation):
        return None
    last = next((message for message in reversed(example.messages) if message.role == "assistant"), None)
    return last.content if last is not None and not last.extra.get("tool_calls") else None


def system_prompt(example: Example) -> str | None:
    """Returns a conversation's system prompt, "" if it has none; None for rows that are not conversations."""
    if not isinstance(example, Conversation):
        return None
    first = example.messages[0]
    return first.content if first.role == "system" else ""


def row_faults(example: Example, control: ControlTokens) -> Iterator[Fault]:
    """Yields problems in a conversation's shape, and control tokens in the texts of other rows."""
    if not isinstance(example, Conversation):
        if token := next(filter(None, map(control.find, _texts(example))), ""):
            yield "control_token_kept", "", token
        return
    messages = example.messages
    if subject := role_fault(messages):
        yield "role_order", subject, ", ".join(message.role for message in messages[:8])
    for number, message in enumerate(messages, start=1):
        if message.role in _QUESTIONS and not message.content.strip() and not message.parts:
            yield "empty_message", f"empty {message.role} message", f"message {number}"
        if token := control.find(message.content):
            yield "control_token", f"in {_of(message.role)}", f"{token} in message {number}"
        if message.role == "assistant" and message.content.rfind("<think>") > message.content.rfind("</think>"):
            yield "open_reasoning", "", f"message {number}: {message.content[-60:]!r}"
        for key in _TRAIN_FLAGS.intersection(message.extra):
            yield "train_flag", f"`{key}`", f"message {number}: {message.extra[key]!r:.60}"
    yield from call_faults(example)


def _texts(example: Example) -> tuple[str, ...]:
    """Returns the texts to which no chat template is applied."""
    if isinstance(example, PromptCompletion):
        return example.prompt, example.completion
    return (example.text,) if isinstance(example, Document) else ()


def role_fault(messages: Sequence[Message]) -> str:
    """Returns the first problem in the order of roles; "" if there is none."""
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


def _of(role: str) -> str:
    names = {"user": "a question", "assistant": "an answer", "system": "a system prompt", "tool": "a tool's result"}
    return names.get(role, role)
