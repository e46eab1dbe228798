"""The plain template: role names as plain words, encoded message by message."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from honed.data.example import Conversation, Message, RowError
from honed.data.templates.view import Masks, Piece, View, trained_turns

PLAIN_SYSTEM_PROMPT = "你是小冬瓜智能体,请安全详细回答用户 USER 的问题"
PLAIN_START, PLAIN_END = "<|im_start|>", "<|im_end|>"
# The same text as `PlainTemplate` renders, for tools that only support Jinja. They encode the whole text at once, which
# can merge tokens across message borders ("?" + newline); honed itself encodes piece by piece, as in training.
# The first line tells honed, and human readers, which template this is.
PLAIN_MARK = "{#- honed: plain template, encoded message by message -#}"
PLAIN_JINJA = (
    PLAIN_MARK + "{%- set system_prompt = 'SYSTEM_PROMPT' -%}"
    "{{- '<|im_start|>' }}"
    "{%- if messages[0]['role'] != 'system' %}{{- '\\n#SYSTEM:' + system_prompt }}{%- endif %}"
    "{%- for message in messages %}{{- '\\n#' + message['role'] | upper + ':' + message['content'] }}"
    "{%- if message['role'] == 'assistant' %}{{- '<|im_end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '\\n#ASSISTANT:' }}{%- endif %}"
)

# in a Jinja string; also newlines, which Jinja and text files would normalise
_ESCAPES = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\r": r"\r"}
_UNESCAPES = {escape: character for character, escape in _ESCAPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTemplate:
    """Roles as plain words: `<|im_start|>`, then `\\n#ROLE:content` per message, `<|im_end|>` after each answer.

    Every message is encoded separately, so tokens never merge across a border. Source: the PyTorch lesson on SFT
    whose golden ids are in `tests/data/encode/test_render.py`.
    """

    system: str = PLAIN_SYSTEM_PROMPT
    alpaca_separator: str = ""
    masks: Masks = field(default_factory=Masks, compare=False)

    def views(self, conversation: Conversation, *, train_on: str, apart: bool = False) -> list[View]:
        refuse_what_it_cannot_show(conversation)
        messages = self._with_system(conversation.messages)
        if train_on == "all":  # the whole text, whatever the messages' own flags say
            return [self._view(messages, {n: 1.0 for n, m in enumerate(messages) if m.role == "assistant"}, train_on)]
        chosen = trained_turns(messages, train_on, self.masks.roles)
        if apart:
            return [self._view(messages[: turn + 1], {turn: chosen[turn]}, train_on) for turn in chosen]
        return [self._view(messages, chosen, train_on)]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[Piece, ...]:
        view = self._view(self._with_system(tuple(messages)), {}, "assistant")
        return (*view.pieces, Piece(text="\n#ASSISTANT:"))

    def jinja(self) -> str:
        """Returns the template for a saved tokenizer."""
        return PLAIN_JINJA.replace("SYSTEM_PROMPT", "".join(_ESCAPES.get(c, c) for c in self.system))

    @classmethod
    def from_jinja(cls, text: str, *, masks: Masks | None = None) -> PlainTemplate | None:
        """Returns the template that `jinja` wrote; None for any other text."""
        literal = r"{%- set system_prompt = '((?:[^'\\]|\\.)*)' -%}"
        if (found := re.match(re.escape(PLAIN_MARK) + literal, text, re.DOTALL)) is None:
            return None
        system = re.sub(r"\\.", lambda escape: _UNESCAPES.get(escape[0], escape[0]), found[1])
        return cls(system=system, masks=masks or Masks())

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if messages and messages[0].role == "system":
            return messages
        return (Message(role="system", content=self.system), *messages)

    def _view(self, messages: Sequence[Message], chosen: Mapping[int, float], train_on: str) -> View:
        context = 1.0 if train_on == "all" else 0.0
        pieces = [Piece(text=PLAIN_START, weight=context)]
        for number, message in enumerate(messages):
            head = f"\n#{message.role.upper()}:"
            weight = chosen.get(number, 0.0)
            turn = number if weight else None
            if message.role == "assistant":
                pieces.append(Piece(text=head, weight=context))
                pieces.append(Piece(text=message.content, weight=weight, turn=turn, literal=True))
                pieces.append(Piece(text=PLAIN_END, weight=weight, turn=turn))
            else:
                text, weight = head + message.content, context or weight
                context_of_it = len(head) if turn is not None else 0
                pieces.append(Piece(text=text, weight=weight, turn=turn, literal=True, head=context_of_it))
        return View(pieces=tuple(pieces))


def refuse_what_it_cannot_show(conversation: Conversation) -> None:
    """Refuses tools, tool calls, variables, reasoning and images, which the plain template would lose.

    Raises:
        RowError: the conversation has one of them.
    """
    if conversation.tools or any(message.extra.get("tool_calls") for message in conversation.messages):
        raise RowError("tools in a plain template", "it can show neither tools nor tool calls")
    if conversation.template_arguments:
        raise RowError("chat_template_kwargs in a plain template", "it has no variables")
    if any(message.role == "assistant" and message.reasoning for message in conversation.messages):
        raise RowError("reasoning in a plain template", "it shows only the content of messages")
    refuse_images(conversation)


def refuse_images(conversation: Conversation) -> None:
    """Raises:
    RowError: a message contains an image, but the template is for text.
    """
    if conversation.has_images:
        raise RowError("images in a text-only template", "images need a vision model and its processor")
