"""A rendered row token by token, as text that is safe to show."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from honed.data.encode.render import Rendered

# Control characters except tab and line feed, direction marks, invisible characters, lone surrogates: anything that
# could control a terminal, reorder the text, or hide.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_BROKEN = "\ufffd"
_CHARACTER = 4  # maximum bytes, and so tokens, of a character
_BACK = 6  # preceding tokens that can change how a token decodes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownToken:
    """One token, or several that form one character together.

    Attributes:
        text: its text, escaped by `visible`.
        ids: its ids.
        weight: its loss weight, 0 if it is not trained.
        special: whether it is a special token.
    """

    text: str
    ids: tuple[int, ...]
    weight: float
    special: bool = False


class TokenViewer:
    """Shows rendered rows token by token, with the tokenizer that encoded them."""

    def __init__(self, tokenizer: Any, special_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._special = {*special_ids}
        self._alone: dict[int, str] = {}

    def tokens(self, rendered: Rendered) -> list[ShownToken]:
        """All ids of the row, each exactly once, in order."""
        ids, weights = rendered.input_ids.tolist(), rendered.weights.tolist()
        shown: list[ShownToken] = []
        start = 0
        for at, (part, weight) in enumerate(zip(self._parts(ids), weights, strict=True)):
            own = ids[start : at + 1]
            text = part if len(own) == 1 else self._decode(own)
            goes_on = at + 1 < len(ids) and weights[at + 1] == weight and len(own) < _CHARACTER
            if text.endswith(_BROKEN) and goes_on:
                continue  # the start of a character
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
        """The text that one id adds to the previous ones; some tokenizers write a space only between words."""
        start = max(0, at - _BACK)
        before, after = self._decode(ids[start:at]), self._decode(ids[start : at + 1])
        return after[len(before) :] if after.startswith(before) else self._alone[ids[at]]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def visible(text: str) -> str:
    """The text with control, reordering and hidden characters escaped, such as `\\x1b` or `\\u202e`."""
    return _UNSAFE.sub(lambda found: _escape(ord(found[0])), text)


def one_line(text: str, most: int) -> str:
    """The text on one line, truncated to `most` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
