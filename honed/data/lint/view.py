"""A rendered row token by token, as text that is safe to show."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from honed.data.encode.render import Rendered

# Control characters but tab and line feed, direction marks, invisible characters, lone surrogates: whatever could
# command a terminal, reorder what is read, or hide.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_BROKEN = "\ufffd"
_CHARACTER = 4  # bytes of a character at most, and so tokens
_BACK = 6  # tokens before one that can change how it decodes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownToken:
    """One token, or several that only together make a character.

    Attributes:
        text: what it adds to the text, escaped by `visible`.
        ids: its ids.
        weight: its loss weight, 0 where it is not trained.
        special: whether it is a special token.
    """

    text: str
    ids: tuple[int, ...]
    weight: float
    special: bool = False


class TokenViewer:
    """Shows rendered rows token by token, with the tokenizer that made the ids."""

    def __init__(self, tokenizer: Any, special_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._special = {*special_ids}
        self._alone: dict[int, str] = {}

    def tokens(self, rendered: Rendered) -> list[ShownToken]:
        """Every id of the row exactly once, in order."""
        ids, weights = rendered.input_ids.tolist(), rendered.weights.tolist()
        shown: list[ShownToken] = []
        start = 0
        for at, (part, weight) in enumerate(zip(self._parts(ids), weights, strict=True)):
            own = ids[start : at + 1]
            text = part if len(own) == 1 else self._decode(own)
            goes_on = at + 1 < len(ids) and weights[at + 1] == weight and len(own) < _CHARACTER
            if text.endswith(_BROKEN) and goes_on:
                continue  # the beginning of a character
            special = ids[at] in self._special
            shown.append(ShownToken(text=visible(text), ids=tuple(own), weight=weight, special=special))
            start = at + 1
        return shown

    def _parts(self, ids: list[int]) -> list[str]:
        """The text that each id adds."""
        for token in set(ids) - self._alone.keys():
            self._alone[token] = self._decode([token])
        alone = [self._alone[token] for token in ids]
        whole = self._decode(ids)
        if _BROKEN in whole or any(_BROKEN in part for part in alone) or "".join(alone) == whole:
            return alone
        return [self._added(ids, at) for at in range(len(ids))]

    def _added(self, ids: list[int], at: int) -> str:
        """What one id adds to those before it; some tokenizers write a space only between words."""
        start = max(0, at - _BACK)
        before, after = self._decode(ids[start:at]), self._decode(ids[start : at + 1])
        return after[len(before) :] if after.startswith(before) else self._alone[ids[at]]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def visible(text: str) -> str:
    """The text with characters that command, reorder or hide written as `\\x1b` or `\\u202e`."""
    return _UNSAFE.sub(lambda found: _escape(ord(found[0])), text)


def one_line(text: str, most: int) -> str:
    """The text on one line, cut at `most` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
