"""Conversations of one shape (roles and flags) have the same views but for their contents: a form, filled in per row.

    user, assistant  ->  <|im_start|>user\\n[0]<|im_end|>\\n<|im_start|>assistant\\n  |  [1]<|im_end|>  |  \\n

That holds for templates that print contents without inspecting them. The template is given contents that raise when
they are inspected (`Opaque`): one that tests, trims, slices or compares them gets no form, nor does one that changes
them. The first rows of each shape are also rendered the usual way, and must come out the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

from honed.data.example import Conversation, RowError
from honed.data.templates.view import Piece, View
from honed.errors import TemplateError

CHECKED_ROWS = 3  # of each shape, against the usual way
_MOST_SHAPES = 256
# What could put a text together in a way that `Opaque` does not see.
_UNSEEN = re.compile(r"~|\b(join|format|replace)\b|['\"]\s*%[^}]")

Shape = tuple[Any, ...]
# The text of a piece: fixed stretches, and numbers of messages whose content stands between them.
Segments = tuple["str | int", ...]
MakeViews = Callable[[Conversation, bool], list[View]]


class LookedAt(Exception):
    """The template did something else with a content than to print it."""


class Opaque(str):
    """A text that can be printed and put between others, and nothing else."""

    __slots__ = ()

    def __add__(self, other: str) -> Opaque:
        return Opaque(str.__add__(self, other))

    def __radd__(self, other: str) -> Opaque:
        return Opaque(str.__add__(other, self))

    def __str__(self) -> str:
        return self


def _look(self: Opaque, *args: Any, **kwargs: Any) -> Any:
    raise LookedAt


_PRINTING = {"__add__", "__radd__", "__str__", "__new__", "__init__", "__class__", "__getattribute__", "__slots__"}
_INNER = {"__init_subclass__", "__subclasshook__", "__setattr__", "__delattr__", "__doc__", "__module__", "__sizeof__"}
for _name in {*dir(str), "__bool__"} - _PRINTING - _INNER:
    setattr(Opaque, _name, _look)


@dataclass(slots=True, kw_only=True)
class Form:
    """The views of a shape; `checked` counts the rows that came out the same both ways."""

    views: list[tuple[View, tuple[Segments, ...]]]
    checked: int = 0

    def fill(self, contents: Sequence[str]) -> list[View]:
        """The views of these contents."""
        return [
            View(pieces=tuple(map(_filled, view.pieces, own, repeat(contents))), checks=view.checks)
            for view, own in self.views
        ]


def _filled(piece: Piece, segments: Segments, contents: Sequence[str]) -> Piece:
    if len(segments) == 1 and isinstance(segments[0], str):
        return piece
    text = "".join([s if isinstance(s, str) else contents[s] for s in segments])
    return Piece(text=text, weight=piece.weight, turn=piece.turn)


@dataclass(slots=True)
class Shapes:
    """Forms for one template and one way to train.

    Args:
        source: the template's text.
        make: (conversation, whether to hide its contents) -> its views, the usual way; raises LookedAt where the
            template inspects hidden contents.
        special: finds contents that the usual way treats specially.
    """

    source: str
    make: MakeViews
    special: re.Pattern[str]
    _forms: dict[Shape, Form | None] = field(default_factory=dict)

    def views(self, conversation: Conversation) -> list[View]:
        """The views of a conversation.

        Raises:
            RowError, TemplateError: see `Template.views`.
        """
        shape = _shape(conversation)
        contents = [message.content for message in conversation.messages]
        if shape is None or any(map(self.special.search, contents)):
            return self.make(conversation, False)
        if shape not in self._forms:
            room = len(self._forms) < _MOST_SHAPES and not _UNSEEN.search(self.source)
            self._forms[shape] = self._found(conversation) if room else None
        form = self._forms[shape]
        if form is None:
            return self.make(conversation, False)
        if form.checked >= CHECKED_ROWS:
            return form.fill(contents)
        views = self.make(conversation, False)
        form.checked += 1
        if form.fill(contents) != views:
            self._forms[shape] = None
        return views

    def form(self, conversation: Conversation) -> tuple[bool, Form | None]:
        """Whether it is settled if this shape has a form, and the form. Checks it on this row as well."""
        with suppress(RowError, TemplateError):
            self.views(conversation)
        shape = _shape(conversation)
        form = self._forms.get(shape) if shape else None
        return (shape in self._forms, None) if form is None else (form.checked >= CHECKED_ROWS, form)

    def _found(self, conversation: Conversation) -> Form | None:
        probes = [_probe(number) for number in range(len(conversation.messages))]
        messages = (replace(m, content=p) for m, p in zip(conversation.messages, probes, strict=True))
        try:
            views = self.make(replace(conversation, messages=tuple(messages)), True)
        except (LookedAt, RowError, TemplateError):
            return None
        found = [(view, tuple(_segments(piece.text, probes) for piece in view.pieces)) for view in views]
        return Form(views=found) if all(_is_filled_by(view, own, probes) for view, own in found) else None


def opaque(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as a template gets it, its content hidden."""
    return {**message, "content": Opaque(message["content"])}


def _shape(conversation: Conversation) -> Shape | None:
    """What a template sees of a conversation beside its contents; None for what has more to it."""
    if conversation.tools or conversation.template_arguments:
        return None
    if any(message.extra or message.parts for message in conversation.messages):
        return None
    return tuple((message.role, message.train, message.weight) for message in conversation.messages)


def _probe(number: int) -> str:
    """A text that does not survive being trimmed, escaped, or turned into another case."""
    return f" \n\ufdd0{number}\"\\<&'Xx\ufdd1\n "


def _segments(text: str, probes: Sequence[str]) -> Segments:
    numbers = {probe: number for number, probe in enumerate(probes)}
    parts = re.split("(" + "|".join(map(re.escape, probes)) + ")", text)
    return tuple(numbers.get(part, part) for part in parts if part)


def _is_filled_by(view: View, pieces: tuple[Segments, ...], probes: Sequence[str]) -> bool:
    """True where the contents decide nothing but the text of the pieces, and each stands there once at most."""
    if (
        view.ends_open
        or view.add_special_tokens
        or any(piece.head or piece.mutes or piece.literal for piece in view.pieces)
    ):
        return False
    segments = [segment for own in pieces for segment in own]
    numbers = [segment for segment in segments if isinstance(segment, int)]
    fixed = "".join(segment for segment in segments if isinstance(segment, str))
    # each that stands in the view: all messages up to its last
    return numbers == list(range(len(numbers))) and "\ufdd0" not in fixed and "\ufdd1" not in fixed
