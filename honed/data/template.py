"""A conversation as text, cut into pieces that are trained and pieces that are not.

A template gives *views*: texts whose pieces carry a loss weight. Most conversations have one view. Where training on
several turns in one text would show the model something else than inference does, there is one view per trained turn.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n Hello!<|im_end|> \\n
    |------------------- context, weight 0 -----------------||-- weight 1 --||0|

The cut before an answer is where the template's own generation prompt ends, so no marks in the template and no search
for marker tokens are needed: what stands before the cut is, by construction, what inference feeds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from honed.data.example import Conversation, Message
from honed.data.formats import RowError
from honed.errors import TemplateError

TRAIN_ON = ("assistant", "last", "all", "completion")

PLAIN_SYSTEM_PROMPT = "你是小冬瓜智能体,请安全详细回答用户 USER 的问题"
PLAIN_START, PLAIN_END = "<|im_start|>", "<|im_end|>"
# The same text as `PlainTemplate` makes, for tools that only know Jinja. They encode it in one go, which can merge
# tokens across message borders ("?" + newline); honed itself encodes piece by piece, as in training.
# The first line tells honed, and whoever reads the file, which it is.
PLAIN_MARK = "{#- honed: plain template, encoded message by message -#}"
PLAIN_JINJA = (
    PLAIN_MARK + "{%- set system_prompt = 'SYSTEM_PROMPT' -%}"
    "{{- '<|im_start|>' }}"
    "{%- if messages[0]['role'] != 'system' %}{{- '\\n#SYSTEM:' + system_prompt }}{%- endif %}"
    "{%- for message in messages %}{{- '\\n#' + message['role'] | upper + ':' + message['content'] }}"
    "{%- if message['role'] == 'assistant' %}{{- '<|im_end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '\\n#ASSISTANT:' }}{%- endif %}"
)

# inside a Jinja string; line ends too, which Jinja and text files would turn into their own
_ESCAPES = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\r": r"\r"}
_UNESCAPES = {escape: character for character, escape in _ESCAPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of text that is encoded by itself. `turn` numbers the trained turn that it answers, if any."""

    text: str
    weight: float = 0.0
    turn: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One text to train on.

    Attributes:
        pieces: in order; their texts joined are the whole text.
        checks: counts of pieces. For each, the joined text of that many pieces, encoded in one go as inference does
            it, must give the same ids as the pieces encoded one by one; else every trained turn gets its own view.
        ends_open: the last trained turn has no token at its end at which generation stops; `render` adds EOS.
        add_special_tokens: the first piece is encoded with the tokenizer's own BOS (texts without a template).
    """

    pieces: tuple[Piece, ...]
    checks: tuple[int, ...] = ()
    ends_open: bool = False
    add_special_tokens: bool = False

    @property
    def text(self) -> str:
        """The whole text of this view."""
        return "".join(piece.text for piece in self.pieces)


class Template(Protocol):
    """What `render` and generation need of a chat template."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def alpaca_separator(self) -> str:
        """What stands between the instruction and the input of an Alpaca row."""

    def views(self, conversation: Conversation, *, train_on: str, apart: bool = False) -> list[View]:
        """The texts to train on; `apart` asks for one view per trained turn.

        Raises:
            RowError: the template refuses this conversation, or nothing in it is to be trained.
            TemplateError: spans in this template's output cannot be verified.
        """

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[Piece, ...]:
        """What inference feeds before the next answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTemplate:
    """Roles in plain words: `<|im_start|>`, then `\\n#ROLE:content` per message, `<|im_end|>` after each answer.

    Every message is encoded by itself, so tokens never merge across a border. Source: the PyTorch lesson on SFT
    whose golden ids are in `tests/data/test_render.py`.
    """

    system: str = PLAIN_SYSTEM_PROMPT
    name: str = "plain"
    alpaca_separator: str = ""

    def views(self, conversation: Conversation, *, train_on: str, apart: bool = False) -> list[View]:
        if conversation.tools or any(message.extra.get("tool_calls") for message in conversation.messages):
            raise RowError("tools in a plain template", "it can show neither tools nor tool calls")
        messages = self._with_system(conversation.messages)
        chosen = trained_turns(messages, train_on)
        if apart:
            return [self._view(messages[: turn + 1], {turn}, train_on) for turn in sorted(chosen)]
        return [self._view(messages, chosen, train_on)]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[Piece, ...]:
        view = self._view(self._with_system(tuple(messages)), set(), "assistant")
        return (*view.pieces, Piece(text="\n#ASSISTANT:"))

    def jinja(self) -> str:
        """The template for a saved tokenizer."""
        return PLAIN_JINJA.replace("SYSTEM_PROMPT", "".join(_ESCAPES.get(c, c) for c in self.system))

    @classmethod
    def from_jinja(cls, text: str) -> PlainTemplate | None:
        """The template that `jinja` wrote down; None for any other text."""
        literal = r"{%- set system_prompt = '((?:[^'\\]|\\.)*)' -%}"
        if (found := re.match(re.escape(PLAIN_MARK) + literal, text, re.DOTALL)) is None:
            return None
        return cls(system=re.sub(r"\\.", lambda escape: _UNESCAPES.get(escape[0], escape[0]), found[1]))

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        return messages if messages[0].role == "system" else (Message(role="system", content=self.system), *messages)

    def _view(self, messages: Sequence[Message], chosen: set[int], train_on: str) -> View:
        context = 1.0 if train_on == "all" else 0.0
        pieces = [Piece(text=PLAIN_START, weight=context)]
        for number, message in enumerate(messages):
            head = f"\n#{message.role.upper()}:"
            if message.role == "assistant":
                weight = 1.0 if number in chosen else 0.0
                turn = number if weight else None
                pieces.append(Piece(text=head, weight=context))
                pieces.append(Piece(text=message.content, weight=weight, turn=turn))
                pieces.append(Piece(text=PLAIN_END, weight=weight, turn=turn))
            else:
                pieces.append(Piece(text=head + message.content, weight=context))
        return View(pieces=tuple(pieces))


class JinjaTemplate:
    """Any chat template of a tokenizer, as it is.

    Args:
        tokenizer: a transformers tokenizer with a chat template; rendering is transformers' own (sandboxed).
        arguments: further variables of the template (`enable_thinking`, ...).
    """

    alpaca_separator = "\n"

    def __init__(self, tokenizer: Any, *, arguments: Mapping[str, Any] | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise TemplateError(
                "The tokenizer has no chat template.",
                fix="set data.template=plain, or data.template=FILE.jinja",
            )
        self.name = "chat template of the tokenizer"
        self._tokenizer = tokenizer
        self._arguments = dict(arguments or {})
        self._special = re.compile("|".join(map(re.escape, special_tokens(tokenizer))) or r"(?!)")

    def views(self, conversation: Conversation, *, train_on: str, apart: bool = False) -> list[View]:
        messages, tools = conversation.messages, conversation.tools
        chosen = sorted(trained_turns(messages, train_on))
        if train_on == "all":
            return [View(pieces=(Piece(text=self._render(messages, tools), weight=1.0),))]
        turns = [self._turn(messages, number, tools) for number in chosen]
        if apart or any(turn.open for turn in turns[:-1]):
            return [turn.alone() for turn in turns]
        whole = turns[-1].text if chosen[-1] == len(messages) - 1 else self._render(messages, tools)
        joined = _joined(whole, turns)
        return [joined] if joined else [turn.alone() for turn in turns]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[Piece, ...]:
        return (Piece(text=self._render(messages, tools, prompt=True)),)

    def _turn(self, messages: tuple[Message, ...], number: int, tools: Sequence[Mapping[str, Any]]) -> _Turn:
        """Where the answer `messages[number]` starts and ends in the text up to and with it."""
        context = self._render(messages[:number], tools, prompt=True)
        text = self._render(messages[: number + 1], tools)
        answer = messages[number]
        if not text.startswith(context):
            raise TemplateError(
                "This chat template does not begin an answer the way its generation prompt does, so what is trained "
                f"would not be what is served.\n  prompt ends:   {context[-60:]!r}\n"
                f"  text at there: {text[max(0, len(context) - 60) : len(context)]!r}",
                fix="set template arguments (data.template_arguments) so that both agree, or use another template",
            )
        tail = text[len(context) :]
        if answer.content.strip() not in tail:
            raise TemplateError(
                f"This chat template changes the answer: {answer.content.strip()[:60]!r} became {tail[:60]!r}.",
                fix="use a template that prints the assistant's content as it is",
            )
        stop = self._stop(tail, answer)
        return _Turn(
            number=number,
            text=text,
            start=len(context),
            end=len(context) + (stop if stop is not None else len(tail.rstrip()) or len(tail)),
            open=stop is None,
        )

    def _stop(self, tail: str, answer: Message) -> int | None:
        """Where the special token ends that closes the answer in `tail`; None where there is none."""
        content = answer.content.strip()
        ends = list(self._special.finditer(tail))
        if answer.extra.get("tool_calls"):  # they follow the content
            return ends[-1].end() if ends else None
        # From the right: the template's own text before the content (reasoning, a channel's name) may hold the same
        # words and special tokens; what stands behind the content is the end token.
        closing = [end for end in reversed(ends) if tail[: end.start()].rstrip().endswith(content)]
        after = tail.find(content) + len(content)
        later = [end for end in ends if end.start() >= after]
        return next((end.end() for end in closing + later), None)

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], prompt: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                [message.as_template_input() for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=prompt,
                **self._arguments,
            )
        except Exception as error:
            # Jinja's own errors and whatever the template's expressions raise on data that it was not made for
            raise RowError("the chat template refuses this conversation", f"{type(error).__name__}: {error}") from None
        return str(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """A trained turn: `text` is the conversation up to its end, [start, end) the characters that are trained."""

    number: int
    text: str
    start: int
    end: int
    open: bool

    def alone(self) -> View:
        """The view that trains this turn only."""
        pieces = (
            Piece(text=self.text[: self.start]),
            Piece(text=self.text[self.start : self.end], weight=1.0, turn=self.number),
        )
        rest = self.text[self.end :]
        after = (Piece(text=rest),) if rest and not self.open else ()
        return View(pieces=pieces + after, ends_open=self.open)


def _joined(whole: str, turns: Sequence[_Turn]) -> View | None:
    """All turns in one text, or None where the template rewrites earlier turns when later ones follow."""
    pieces: list[Piece] = []
    checks: list[int] = []
    position = 0
    for turn in turns:
        if not whole.startswith(turn.text[: turn.end]):
            return None
        pieces.append(Piece(text=whole[position : turn.start]))
        # the first context is encoded exactly as inference does it; later ones follow cuts that inference lacks
        if position:
            checks.append(len(pieces))
        pieces.append(Piece(text=whole[turn.start : turn.end], weight=1.0, turn=turn.number))
        position = turn.end
    if rest := whole[position:]:
        pieces.append(Piece(text=rest))
    last = turns[-1]
    if last.open:
        return None if len(turns) > 1 else last.alone()
    return View(pieces=tuple(pieces), checks=tuple(checks))


def trained_turns(messages: Sequence[Message], train_on: str) -> set[int]:
    """Numbers of the assistant messages that are trained.

    Raises:
        RowError: none is.
    """
    answers = [n for n, message in enumerate(messages) if message.role == "assistant"]
    wanted = {n for n in answers if messages[n].train is not False}
    if train_on == "last":
        wanted &= {answers[-1]} if answers else set()
    if not wanted:
        raise RowError("nothing to train", "no assistant message is left to train")
    return wanted


def special_tokens(tokenizer: Any) -> list[str]:
    """All special tokens, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {*tokenizer.all_special_tokens, *(token.content for token in added.values() if token.special)}
    return sorted(found, key=lambda token: (-len(token), token))
