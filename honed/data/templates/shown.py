"""Checks that a chat template prints all of a row: content, reasoning, tool calls and tools."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from honed.data.example import Message
from honed.errors import TemplateError

INLINE_REASONING = re.compile(r"</?think>")


def shown_content(message: Message, tail: str) -> str | None:
    """Returns the part of an answer's content before its end token in `tail`; None if tool calls are last.

    Raises:
        TemplateError: content, reasoning or tool calls are missing in `tail`.
    """
    calls = message.extra.get("tool_calls") or ()
    _need_reasoning(message, tail)
    for call in calls:
        if (name := _name_of(call)) not in tail:
            raise TemplateError(
                f"This chat template does not show the tool calls of an answer: no {name[:60]!r} in {tail[:60]!r}.",
                fix="use a template that shows tool calls",
            )
    content = message.content.strip()
    if calls and not content:
        return None
    last = content if content in tail else _last_part(content, tail)
    return None if calls else last


def need_tools_shown(tools: Sequence[Mapping[str, Any]], text: str) -> None:
    """Checks that the text contains every tool's name.

    Raises:
        TemplateError: a name is missing.
    """
    absent = next((name for tool in tools if (name := _name_of(tool)) not in text), None)
    if absent is not None:
        raise TemplateError(
            f"This chat template does not announce the tools of the row: no {absent[:60]!r} in its text.",
            fix="use a template that shows tools, or leave them out of the rows",
        )


def _need_reasoning(message: Message, tail: str) -> None:
    reasoning = message.reasoning
    if reasoning is not None and reasoning.strip() not in tail:
        raise TemplateError(
            f"This chat template does not show the reasoning of an answer: no {reasoning.strip()[:60]!r} in "
            f"{tail[:60]!r}.",
            fix="turn thinking on (data.template_arguments), use a template that shows it, or leave it out of the rows",
        )


def _last_part(content: str, tail: str) -> str:
    """Returns the text after the last think tag: a template may move inline reasoning, but must print it."""
    parts = [part.strip() for part in INLINE_REASONING.split(content)]
    position = 0
    for part in parts:
        if (found := tail.find(part, position)) < 0:
            raise TemplateError(
                f"This chat template changes the answer: {part[:60]!r} became {tail[:60]!r}.",
                fix="use a template that prints the assistant's content as it is",
            )
        position = found + len(part)
    return parts[-1]


def _name_of(tool: Mapping[str, Any]) -> str:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else tool.get("name")
    return name if isinstance(name, str) else ""
