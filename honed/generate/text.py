"""Streaming detokenization: only whole characters, and nothing that may still become part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders write for the first bytes of a character


class TextStream:
    """The text of one answer, fed token by token.

    A character may take several tokens, and a stop string may begin inside one token and end inside another. So text is
    held back until its characters are whole and its end can no longer begin a stop string.

    Args:
        decode: ids to text; special tokens may be left out.
        stop_strings: texts that end the answer; not empty ones.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop_strings: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._decode, self._stops = decode, tuple(stop_strings)
        self._ids: list[int] = []
        self._window, self._read = 0, 0  # ids from `_window` are decoded anew; the text of those before `_read` is out
        self._held = ""

    def feed(self, token: int) -> str:
        """The text that this token makes certain; "" once stopped."""
        if self.stopped:
            return ""
        self._ids.append(token)
        whole = self._decode(self._ids[self._window :])
        if whole.endswith(UNFINISHED):
            return ""
        # a decoder may treat the first token in its own way, so the tokens read before are decoded along
        known = self._decode(self._ids[self._window : self._read])
        self._window, self._read = self._read, len(self._ids)
        return self._give(whole[len(known) :])

    def close(self) -> str:
        """What is left once no more tokens come."""
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
        """Length of the longest end of `text` with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        ends = range(min(longest, len(text)), 0, -1)
        return next((n for n in ends if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
