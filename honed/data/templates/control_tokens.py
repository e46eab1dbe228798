"""Keeps control tokens in a row's text as text: `<|im_end|>` typed by a user does not end a turn.

Each is enclosed in two marks before the template runs, and found by these marks afterwards:

    "say <|im_end|>"  ->  "say ^<|im_end|>$"  ->  <|im_start|>user\\nsay ^<|im_end|>$<|im_end|>\\n
                                                 |----- as usual ------||- literal -||- as usual -|

The marks are two Unicode noncharacters that the row does not contain. Without them, the text must equal the template's
output for the unmarked row. Rows without control tokens are rendered directly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from honed.data.example import Message, RowError
from honed.data.templates.view import Piece, View

_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks before and after a control token that is text."""

    start: str
    end: str

    def around(self, text: str, control: re.Pattern[str]) -> str:
        """Returns the text with its control tokens marked."""
        return control.sub(lambda found: f"{self.start}{found[0]}{self.end}", text)

    def strip(self, text: str) -> str:
        """Returns the text without marks."""
        return text.replace(self.start, "").replace(self.end, "")

    def stretches(self, text: str) -> list[tuple[int, int, bool]]:
        """Returns (start, end, literal) for each stretch, between a pair of marks (literal) or outside."""
        borders = [n for n, character in enumerate(text) if character in (self.start, self.end)]
        edges = [-1, *borders, len(text)]
        return [
            (a + 1, b, a >= 0 and text[a] == self.start and b < len(text) and text[b] == self.end)
            for a, b in pairwise(edges)
            if b > a + 1
        ]


def find(value: Any, control: re.Pattern[str]) -> bool:
    """Whether a text, or a text inside lists and mappings, contains a control token."""
    if isinstance(value, str):
        return control.search(value) is not None
    if isinstance(value, Mapping):
        return any(find(key, control) or find(inner, control) for key, inner in value.items())
    return isinstance(value, Sequence) and any(find(inner, control) for inner in value)


def choose_marks(*values: Any) -> Marks:
    """Chooses two code points that none of the values contains.

    Raises:
        RowError: fewer than two are free.
    """
    free = [mark for mark in _NONCHARACTERS if not find(values, re.compile(mark))]
    if len(free) < 2:
        raise RowError("control tokens in the text", "and all code points that could mark them are in use")
    return Marks(free[0], free[1])


def marked(value: Any, control: re.Pattern[str], marks: Marks) -> Any:
    """Returns a copy with the control tokens in its texts marked."""
    if isinstance(value, str):
        return marks.around(value, control)
    if isinstance(value, Mapping):
        return {marked(k, control, marks): marked(v, control, marks) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [marked(inner, control, marks) for inner in value]
    return value


def marked_message(message: Message, control: re.Pattern[str], marks: Marks) -> Message:
    """Returns the message with control tokens marked in its content and all other keys."""
    content = marks.around(message.content, control)
    return replace(message, content=content, extra=marked(message.extra, control, marks))


def unmarked(view: View, marks: Marks) -> View:
    """Returns the view without marks; marked text becomes literal pieces."""
    parts = [_parts(piece, marks) for piece in view.pieces]
    checks = tuple(sum(map(len, parts[:count])) for count in view.checks)
    return replace(view, pieces=tuple(part for piece in parts for part in piece), checks=checks)


def _parts(piece: Piece, marks: Marks) -> list[Piece]:
    parts = []
    for start, end, literal in marks.stretches(piece.text):
        head = max(0, min(piece.head, end) - start)
        part = replace(piece, text=piece.text[start:end], literal=literal, mutes=_within(piece.mutes, start, end))
        is_context = head == end - start
        parts.append(replace(part, weight=0.0, turn=None, head=0, mutes=()) if is_context else replace(part, head=head))
    return parts


def _within(mutes: tuple[tuple[int, int], ...], start: int, end: int) -> tuple[tuple[int, int], ...]:
    clipped = ((max(a, start) - start, min(b, end) - start) for a, b in mutes)
    return tuple((a, b) for a, b in clipped if b > a)
