"""Streaming detokenization that emits only whole characters, and no text that may become part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # decoders write it for an incomplete character


class TextStream:
    """The text of one answer, fed token by token.

    A character may take several tokens, and a stop string may begin inside one token and end inside another. So text is
    held back until its characters are complete and its end cannot be the start of a stop string.

    Args:
        decode: converts ids to text; may skip special tokens.
        stop_strings: strings that end the answer; none may be empty.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop_strings: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._decode, self._stops = decode, tuple(stop_strings)
        self._ids: list[int] = []
        self._window, self._read = 0, 0  # decodes from `_window` on; text before `_read` has been emitted
        self._held = ""

    def feed(self, token: int) -> str:
        """The text that is final after this token; "" once stopped."""
        if self.stopped:
            return ""
        self._ids.append(token)
        whole = self._decode(self._ids[self._window :])
        if whole.endswith(UNFINISHED):
            return ""
        # a decoder may treat the first token differently, so decode together with the tokens read before
        known = self._decode(self._ids[self._window : self._read])
        self._window, self._read = self._read, len(self._ids)
        return self._give(whole[len(known) :])

    def close(self) -> str:
        """The remaining text, after the last token."""
        if self.stopped:
            return ""
        whole = self._decode(self._ids[self._window :])
        known = self._decode(self._ids[self._window : self._read])
        given = self._give(whole[len(known) :])
        rest, self._held = self._held, ""
        if self.stopped:
            return given
        self.text += rest
        return given + rest

    def _give(self, new: str) -> str:
        pending = self._held + new
        ends = [place for stop in self._stops if (place := pending.find(stop)) >= 0]
        self.stopped = bool(ends)
        cut = min(ends) if ends else len(pending) - self._may_begin(pending)
        given, self._held = pending[:cut], "" if ends else pending[cut:]
        self.text += given
        return given

    def _may_begin(self, text: str) -> int:
        """Length of the longest suffix of `text` that is a prefix of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        ends = range(min(longest, len(text)), 0, -1)
        return next((n for n in ends if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
