"""Borders between prompt and answer that tokenise differently when both are encoded as one text.

    "The capital is " + "Rome"      trained: |The| capital| is| |Rome|      as one text: |The| capital| is| Rome|

honed trains the ids of the prompt followed by those of the answer, as a served prompt is encoded before its answer.
If whitespace is missing or on the wrong side of the border, the model learns to begin answers with a token that it has
rarely seen in such a place. TRL encodes both as one text and moves the border, so it trains other tokens than are
served.

NEAR characters on both sides are compared, because tokens across the border are hardly longer. Large datasets are
sampled: encoding every row again would take about half as long as the rest of the check.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from honed.data.encode.render import Renderer
from honed.data.example import Example
from honed.data.templates.view import Piece, View

NEAR = 24
FIRST, EVERY = 500, 25  # check the first 500 rows, then every 25th


class Borders:
    """Finds such borders. `rows` counts all rows, `looked_at` those that were checked."""

    def __init__(self, tokenizer: Any) -> None:
        self._renderer, self._decode = Renderer(tokenizer, None), tokenizer.decode
        self.rows = self.looked_at = 0

    def find(self, planned: Sequence[tuple[Example, Sequence[View]]]) -> list[str]:
        """For each row, the tokens at its first such border; "" if it has none or was not checked."""
        borders = [_borders(views) if self._is_chosen() else [] for _, views in planned]
        pairs = [(example, _as_views(own)) for (example, _), own in zip(planned, borders, strict=True)]
        rendered = self._renderer.encode([(example, views) for example, views in pairs if views])
        found = iter(rendered)
        return [self._first([view.input_ids for view in next(found)]) if views else "" for _, views in pairs]

    def note(self) -> str:
        """A note that only a sample was checked; "" if all rows were."""
        if self.looked_at == self.rows:
            return ""
        return f"The border of prompt and answer was checked in a sample: {self.looked_at:,} of {self.rows:,} rows."

    def _is_chosen(self) -> bool:
        self.rows += 1
        chosen = self.rows <= FIRST or self.rows % EVERY == 0
        self.looked_at += chosen
        return chosen

    def _first(self, ids: Sequence[np.ndarray]) -> str:
        for apart, joint in zip(ids[::2], ids[1::2], strict=True):
            if not np.array_equal(apart, joint):
                return self._in_words(apart.tolist(), joint.tolist())
        return ""

    def _in_words(self, apart: list[int], joint: list[int]) -> str:
        while apart[:1] == joint[:1]:
            apart, joint = apart[1:], joint[1:]
        while apart[-1:] == joint[-1:]:
            apart, joint = apart[:-1], joint[:-1]
        trained, one = (" + ".join(repr(self._decode([token])) for token in ids) for ids in (apart, joint))
        return f"trained as {trained}; as one text {one}"


def _as_views(borders: Sequence[tuple[str, str]]) -> list[View]:
    """For each border, one view with both sides encoded separately and one with both as a single text."""
    return [
        View(pieces=pieces)
        for before, after in borders
        for pieces in ((Piece(text=before), Piece(text=after)), (Piece(text=before + after),))
    ]


def _borders(views: Sequence[View]) -> list[tuple[str, str]]:
    """The text before and after each place where a trained turn begins with a piece of its own."""
    return list(dict.fromkeys(border for view in views for border in _borders_of(view)))


def _borders_of(view: View) -> Iterator[tuple[str, str]]:
    for before, after in zip(view.pieces, view.pieces[1:], strict=False):
        if after.turn is None or after.turn == before.turn or not before.text or not after.text:
            continue
        if not before.literal and not after.literal:  # otherwise control tokens next to the border may be text
            yield before.text[-NEAR:], after.text[:NEAR]
