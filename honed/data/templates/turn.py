"""The text of a trained turn, and the views made from turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from honed.data.templates.view import Piece, View


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTurn:
    """A trained turn.

    Attributes:
        number: index of its message.
        text: the conversation up to and including it.
        start, end: the trained span of characters in `text`.
        open: whether no special token ends it.
        served: whether inference generates such turns, so that the text before it is encoded separately, like a prompt.
        weight: loss weight.
        mutes: spans of `text` inside the turn that are not trained.
    """

    number: int
    text: str
    start: int
    end: int
    open: bool = False
    served: bool = True
    weight: float = 1.0
    mutes: tuple[tuple[int, int], ...] = ()

    def alone(self) -> View:
        """Returns the view that trains this turn only."""
        rest = self.text[self.end :]
        after = (Piece(text=rest),) if rest and not self.open else ()
        return View(pieces=(*self.pieces(self.text, 0), *after), ends_open=self.open)

    def pieces(self, whole: str, position: int) -> list[Piece]:
        """Returns the pieces of `whole` from `position` to the end of this turn."""
        # Inference encodes everything up to the prompt's end at once; without a prompt, the text stays in one piece.
        cut = self.start if self.served else position
        mutes = tuple((a - cut, b - cut) for a, b in self.mutes)
        text, head = whole[cut : self.end], self.start - cut
        own = Piece(text=text, weight=self.weight, turn=self.number, head=head, mutes=mutes)
        return [Piece(text=whole[position:cut]), own] if self.served else [own]


def joined(whole: str, turns: Sequence[TextTurn]) -> View | None:
    """Returns one view of all turns, or None if the template changes earlier turns when later ones follow."""
    pieces: list[Piece] = []
    checks: list[int] = []
    position = 0
    for turn in turns:
        if not whole.startswith(turn.text[: turn.end]):
            return None
        more = turn.pieces(whole, position)
        # The first context is a prompt. Later ones are cut at turns, which inference does not do: check them.
        if position and turn.served:
            checks.append(len(pieces) + 1)
        pieces += more
        position = turn.end
    if rest := whole[position:]:
        pieces.append(Piece(text=rest))
    last = turns[-1]
    if last.open:
        return None if len(turns) > 1 else last.alone()
    return View(pieces=tuple(pieces), checks=tuple(checks))
