"""Views: a template's output for a conversation, which `render` encodes: texts in pieces with loss weights.

Most conversations have one view. If one text with several trained turns would differ from what the model sees at
inference, each trained turn gets its own view.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n Hello!<|im_end|> \\n
    |------------------- context, weight 0 -----------------||-- weight 1 --||0|
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from honed.data.example import ROLES, Conversation, Message, RowError
from honed.errors import RecipeError

TRAIN_ON = ("assistant", "last", "all", "completion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of text that is encoded separately.

    Attributes:
        weight: loss weight of its tokens.
        turn: index of the trained message that it belongs to; None for context.
        literal: whether the text comes from the row, so that special tokens in it are encoded as plain text.
        head: number of leading characters that are context, with weight 0.
        mutes: character spans [start, end) whose tokens get weight 0; the ids do not change.
    """

    text: str
    weight: float = 0.0
    turn: int | None = None
    literal: bool = False
    head: int = 0
    mutes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One text to train on.

    Attributes:
        pieces: in order; their joined texts are the whole text.
        checks: counts of leading pieces that must have the same ids encoded as one text (as in inference) and piece by
            piece; otherwise every trained turn gets its own view.
        ends_open: whether no stop token ends the last trained turn; `render` then appends EOS.
        add_special_tokens: whether `render` prepends the tokenizer's BOS (texts without a template).
    """

    pieces: tuple[Piece, ...]
    checks: tuple[int, ...] = ()
    ends_open: bool = False
    add_special_tokens: bool = False

    @property
    def text(self) -> str:
        """The whole text of this view."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """Which turns, and which parts of them, are trained.

    Attributes:
        roles: roles whose turns are trained.
        reasoning: False sets the weight of reasoning inside trained turns to 0.
        tool_calls: False sets the weight of tool calls inside trained turns to 0.

    Raises:
        RecipeError: a role is unknown, or there is none.
    """

    roles: tuple[str, ...] = ("assistant",)
    reasoning: bool = True
    tool_calls: bool = True

    def __post_init__(self) -> None:
        known = tuple(dict.fromkeys(ROLES.values()))
        wrong = [role for role in self.roles if role not in known]
        if wrong or not self.roles or isinstance(self.roles, str):
            raise RecipeError(f"train_roles is {self.roles!r}.", fix=f"a list of: {', '.join(known)}")


class Template(Protocol):
    """The interface of chat templates for `render` and generation."""

    @property
    def alpaca_separator(self) -> str:
        """The separator between the instruction and the input of an Alpaca row."""

    def views(self, conversation: Conversation, *, train_on: str, apart: bool = False) -> list[View]:
        """Returns the texts to train on; `apart` requests one view per trained turn.

        Raises:
            RowError: the template refuses this conversation, or nothing in it is trained.
            TemplateError: spans in this template's output cannot be verified.
        """

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[Piece, ...]:
        """Returns the model's input at inference before the next answer."""


def trained_turns(messages: Sequence[Message], train_on: str, roles: Sequence[str]) -> dict[int, float]:
    """Returns the indices of the trained messages, in order, with their loss weights.

    Raises:
        RowError: no message is trained.
    """
    turns = [n for n, message in enumerate(messages) if message.role in roles]
    if train_on == "last":
        turns = turns[-1:]
    wanted = {n: messages[n].loss_weight for n in turns if messages[n].loss_weight > 0}
    if not wanted:
        raise RowError("nothing to train", f"no message of {' or '.join(roles)} is left to train")
    return wanted


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern for any of these texts, earlier ones preferred; it matches nothing if there are none."""
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")


def special_tokens(tokenizer: Any) -> list[str]:
    """Returns all special tokens, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {*tokenizer.all_special_tokens, *(token.content for token in added.values() if token.special)}
    return sorted(found, key=lambda token: (-len(token), token))
