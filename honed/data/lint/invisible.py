"""Invisible characters in a row's text, which the model learns all the same.

Where a script or an emoji needs them they are no fault: joiners next to Arabic, Indic and similar scripts and inside
emoji, zero-width spaces next to scripts without spaces, direction marks in text with right-to-left letters.
Sources: Unicode Standard, sections 23.2 and 23.9; UTS 51 (emoji); CVE-2021-42574 (direction that hides code).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from honed.data.lint.view import visible

_MARGIN = 12  # characters shown on each side
_NAMES = {
    "\u00ad": "soft hyphen",
    "\u061c": "Arabic letter mark",
    "\u180e": "Mongolian vowel separator",
    "\u200b": "zero-width space",
    "\u200c": "zero-width non-joiner",
    "\u200d": "zero-width joiner",
    "\u200e": "left-to-right mark",
    "\u200f": "right-to-left mark",
    "\u2028": "line separator",
    "\u2029": "paragraph separator",
    **dict.fromkeys("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069", "direction control"),
    "\u2060": "word joiner",
    **dict.fromkeys("\u2061\u2062\u2063\u2064", "invisible operator"),
    "\ufeff": "byte order mark",
    **dict.fromkeys("\ufff9\ufffa\ufffb", "annotation mark"),
}
_TAG = "tag character"
_TAGS = "\U000e0000-\U000e007f"  # in emoji they follow a black flag, as in Scotland's
_FOUND = re.compile(f"[{''.join(_NAMES)}]|(?<![\U0001f3f4{_TAGS}])[{_TAGS}]")
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FROM_THE_RIGHT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefe\U00010800-\U00010fff\U0001e800-\U0001efff]")
_JOINING = re.compile("[\u0590-\u1fff\u2190-\u2bff\u3000-\ufefe\U00010000-\U000dffff]")  # scripts, emoji
_NO_SPACES = re.compile("[\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\ua980-\ua9df\uaa60-\uaadf]")
_NEEDED_BESIDE = {"\u200b": _NO_SPACES, "\u200c": _JOINING, "\u200d": _JOINING, "\u180e": re.compile("[\u1800-\u18af]")}


def invisible(text: str) -> Iterator[tuple[str, str]]:
    """The first of each kind of invisible characters that its context does not need: name with code, and the place."""
    met = set()
    for match in _FOUND.finditer(text):
        character = match[0]
        name = _NAMES.get(character, _TAG)
        if name not in met and not _needed(text, match.start()):
            met.add(name)
            yield f"{name} (U+{ord(character):04X})", shown_at(text, match.start())


def shown_at(text: str, at: int) -> str:
    """A character as its escape, such as `\\u200b`, with its surrounding characters, on one line."""
    before, after = text[max(0, at - _MARGIN) : at], text[at + 1 : at + 1 + _MARGIN]
    return " ".join(visible(f"{before}{text[at].encode('unicode_escape').decode()}{after}").split())


def _needed(text: str, at: int) -> bool:
    character = text[at]
    if character in _DIRECTION:
        return _FROM_THE_RIGHT.search(text) is not None
    beside = _NEEDED_BESIDE.get(character)
    return beside is not None and beside.search(text[max(0, at - 1) : at] + text[at + 1 : at + 2]) is not None
