"""Forms: conversations of one shape (roles and flags) differ only in contents, so their views are filled per row.

    user, assistant  ->  <|im_start|>user\\n[0]<|im_end|>\\n<|im_start|>assistant\\n  |  [1]<|im_end|>  |  \\n

That holds for templates that print contents without inspecting them. The template is rendered with contents that raise
an error when inspected (`Opaque`): a template that tests, trims, slices, compares or changes them gets no form. The
first rows of each shape are also rendered directly, and both results must be equal.
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

CHECKED_ROWS = 3  # rows of each shape that are checked against direct rendering
_MOST_SHAPES = 256
# Operations that could combine texts unnoticed by `Opaque`.
_UNSEEN = re.compile(r"~|\b(join|format|replace)\b|['\"]\s*%[^}]")

Shape = tuple[Any, ...]
# The text of a piece: fixed strings, and indices of messages whose content goes between them.
Segments = tuple["str | int", ...]
MakeViews = Callable[[Conversation, bool], list[View]]


class LookedAt(Exception):
    """The template did more with a content than print it."""


class Opaque(str):
    """A string that can only be printed and concatenated."""

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
    """The views of a shape; `checked` counts the rows for which direct rendering gave the same views."""

    views: list[tuple[View, tuple[Segments, ...]]]
    checked: int = 0

    def fill(self, contents: Sequence[str]) -> list[View]:
        """Returns the views with these contents filled in."""
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
    """Forms for one template and one `train_on`.

    Args:
        source: the template's text.
        make: (conversation, whether to hide its contents) -> its views by direct rendering; raises LookedAt if the
            template inspects hidden contents.
        special: finds contents that direct rendering treats specially.
    """

    source: str
    make: MakeViews
    special: re.Pattern[str]
    _forms: dict[Shape, Form | None] = field(default_factory=dict)

    def views(self, conversation: Conversation) -> list[View]:
        """Returns the views of a conversation.

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
        """Returns whether it is known if this shape has a form, and the form; also checks the form on this row."""
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
    """Returns the message as passed to a template, with its content opaque."""
    return {**message, "content": Opaque(message["content"])}


def _shape(conversation: Conversation) -> Shape | None:
    """Returns what a template sees of a conversation besides its contents; None if there is more to it."""
    if conversation.tools or conversation.template_arguments:
        return None
    if any(message.extra or message.parts for message in conversation.messages):
        return None
    return tuple((message.role, message.train, message.weight) for message in conversation.messages)


def _probe(number: int) -> str:
    """Returns a text that trimming, escaping or changing case would alter."""
    return f" \n\ufdd0{number}\"\\<&'Xx\ufdd1\n "


def _segments(text: str, probes: Sequence[str]) -> Segments:
    numbers = {probe: number for number, probe in enumerate(probes)}
    parts = re.split("(" + "|".join(map(re.escape, probes)) + ")", text)
    return tuple(numbers.get(part, part) for part in parts if part)


def _is_filled_by(view: View, pieces: tuple[Segments, ...], probes: Sequence[str]) -> bool:
    """Whether contents affect only the text of the pieces, and each occurs at most once, in order."""
    if (
        view.ends_open
        or view.add_special_tokens
        or any(piece.head or piece.mutes or piece.literal for piece in view.pieces)
    ):
        return False
    segments = [segment for own in pieces for segment in own]
    numbers = [segment for segment in segments if isinstance(segment, int)]
    fixed = "".join(segment for segment in segments if isinstance(segment, str))
    # Each content of the view is present: all messages up to its last one.
    return numbers == list(range(len(numbers))) and "\ufdd0" not in fixed and "\ufdd1" not in fixed
