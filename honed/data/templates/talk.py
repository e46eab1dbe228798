"""A conversation's text under a chat template, up to any message, and the spans of its parts.

A part is located by rendering twice, once unchanged and once with a probe in its place. The text before and after the
probe is common to both; the part lies between, however the template prints it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from honed.data.example import REASONING, Message, RowError
from honed.data.templates.control_tokens import Marks
from honed.errors import TemplateError

_THINK_BLOCK = re.compile(r"(?<=<think>)(\s*)(\S.*?)(\s*)(?=</think>)", re.DOTALL)
_NOTHING = "conversation begins with the assistant: nothing to answer"
_ASK_FIRST = 'the chat template makes no prompt without a question: put one first, or mark message 1 "train": false'
_PROBE = "Xprobe9X"
_ADVICE = "train them too (leave this option out), or use a template that prints them once and as they are"


class Talk:
    """A conversation under a template.

    Args:
        jinja: renders messages, as `ChatJinja` does.
        messages, tools: as passed to the template.
        marks: the marks around control tokens in them, if any.
        plain: the same conversation without marks; both must render to the same text.
    """

    def __init__(
        self,
        jinja: Callable[..., str],
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        marks: Marks | None = None,
        plain: Talk | None = None,
    ) -> None:
        self.messages, self.tools, self.marks = tuple(messages), tools, marks
        self._jinja, self._plain = jinja, plain
        self._inputs = [message.as_template_input() for message in messages]

    def text(self, count: int, *, prompt: bool = False) -> str:
        """Renders the first `count` messages; with `prompt`, up to the start of the next answer.

        Raises:
            RowError: the template refuses them.
            TemplateError: see `ChatJinja`.
        """
        try:
            text = self._jinja(self._inputs[:count], self.tools, prompt=prompt)
        except RowError:
            if count:
                raise
            raise RowError(_NOTHING, _ASK_FIRST) from None
        if not count and not text:
            raise RowError(_NOTHING, _ASK_FIRST)
        if self._plain and self.marks and self._plain.text(count, prompt=prompt) != self.marks.strip(text):
            raise RowError(
                "control tokens in the text", "the chat template reads them, so they cannot be encoded as text"
            )
        return text

    def prompt_from_question(self, number: int) -> str:
        """Returns the prompt for message `number` from the previous message's content on; "" if it lacks that."""
        if not number:
            return ""
        asked = replace(self.messages[number - 1], content=_PROBE)
        try:
            other = self._with(number - 1, asked, prompt=True)
        except RowError:
            return ""
        prompt, (before, found, behind) = self.text(number, prompt=True), other.partition(_PROBE)
        alone = found and _PROBE not in behind and prompt.startswith(before) and prompt.endswith(behind)
        return prompt[len(before) :] if alone else ""

    def is_literal(self, text: str, position: int) -> bool:
        """Whether the control token at this position is the row's own text."""
        return self.marks is not None and text[position - 1 : position] == self.marks.start

    def content_span(self, number: int) -> tuple[int, int]:
        """Returns the span of a message's content in the text up to and including that message.

        Raises:
            TemplateError: it cannot be located.
        """
        return self._span(number, replace(self.messages[number], content=_PROBE), "content")

    def reasoning_span(self, number: int) -> tuple[int, int]:
        """Returns the span of the reasoning, whether under its own key or between think tags in the content."""
        message = self.messages[number]
        if message.reasoning:
            extra = {key: _PROBE if key in REASONING else value for key, value in message.extra.items()}
            return self._span(number, replace(message, extra=extra), "reasoning")
        content = _THINK_BLOCK.sub(rf"\g<1>{_PROBE}\g<3>", message.content, count=1)
        return self._span(number, replace(message, content=content), "reasoning")

    def calls_span(self, number: int, start: int, end: int) -> tuple[int, int]:
        """Returns the span of the tool calls of the answer [start, end), which are its last part."""
        message = self.messages[number]
        if message.content.strip():
            return self.content_span(number)[1], end
        behind = self.reasoning_span(number)[1] if message.reasoning else start
        silent = {key: value for key, value in message.extra.items() if key != "tool_calls"}
        try:
            rest = self._with(number, replace(message, extra=silent))
        except RowError:  # an answer with neither content nor calls
            return behind, end
        text = self.text(number + 1)
        return next((n for n in range(behind, end) if _is_cut_at(text, n, rest)), behind), end

    def _span(self, number: int, probed: Message, what: str) -> tuple[int, int]:
        text, other = self.text(number + 1), self._with(number, probed)
        before, found, behind = other.partition(_PROBE)
        if not found or _PROBE in behind or not (text.startswith(before) and text.endswith(behind)):
            raise TemplateError(
                f"The {what} of message {number + 1} ({probed.role}) cannot be located in what this chat template "
                f"makes of it: {text[-80:]!r}.",
                fix=_ADVICE,
            )
        return len(before), len(text) - len(behind)

    def _with(self, number: int, message: Message, *, prompt: bool = False) -> str:
        inputs = [*self._inputs[:number], message.as_template_input()]
        return self._jinja(inputs, self.tools, prompt=prompt)


def _is_cut_at(text: str, start: int, rest: str) -> bool:
    """Whether `rest` is `text` without a span that begins at `start`."""
    return start <= len(rest) and text[:start] == rest[:start] and text.endswith(rest[start:])
