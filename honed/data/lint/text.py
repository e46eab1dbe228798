"""Faults in the text of a row: wrong encodings, control tokens, keys and personal data, unusual scripts.

Each test is cheap for text without the fault: it searches for a literal before it tries any regular expression, and
ASCII text is not searched for mojibake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from honed.data.lint.invisible import invisible, shown_at
from honed.data.templates.view import any_of

Fault = tuple[str, str, str]  # kind, subject, detail

_CP1252 = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_LATIN = re.compile(rf"[\u00c2-\u00f4](?:[\u0080-\u00bf{_CP1252}]){{1,3}}")
_GBK = re.compile("锟斤拷|烫烫烫|[銆鈥]")
_C1 = re.compile("[\u0080-\u009f]")  # useless in text, but quotes and dashes in Windows-1252
# Characters that UTF-8 misread as Latin-1 plausibly stands for. U+0800 to U+08FF are left out: French typography
# ("là »") would decode to these.
_PLAUSIBLE = re.compile(
    "[\u0080-\u07ff\u0900-\u097f\u0e00-\u0e7f\u2000-\u2bff\u3000-\ud7a3\uff00-\uffef\U0001f000-\U0001ffff]+"
)
_EMAIL = re.compile(r"[A-Za-z0-9_.+-]+@(?!example\.)(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}\b")
_DIGITS = re.compile(r"[+(]?[0-9][0-9 ().-]{8,18}[0-9]")
_PHONE = re.compile(r"\+[1-9][0-9 ().-]{8,17}[0-9]|(?:\([0-9]{3}\) ?|[0-9]{3}[-.])[0-9]{3}[-. ][0-9]{4}|1[3-9][0-9]{9}")
SECRETS = (
    ("sk-", re.compile(r"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}")),
    ("AKIA", re.compile(r"\bAKIA[0-9A-Z]{16}\b")),
    ("gh", re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36}")),
    ("github_pat_", re.compile(r"\bgithub_pat_\w{22,}")),
    ("xox", re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}")),
    ("AIza", re.compile(r"\bAIza[A-Za-z0-9_-]{35}")),
    ("hf_", re.compile(r"\bhf_[A-Za-z0-9]{30,}")),
    ("PRIVATE KEY", re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")),
)
_SCRIPTS = (
    (0x0041, "Latin"), (0x005B, ""), (0x0061, "Latin"), (0x007B, ""), (0x00C0, "Latin"), (0x0250, ""),
    (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "other"), (0x0590, "Hebrew"), (0x0600, "Arabic"),
    (0x0700, "other"), (0x0900, "Devanagari"), (0x0980, "other"), (0x0E00, "Thai"), (0x0E80, "other"),
    (0x1100, "Korean"), (0x1200, "other"), (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, ""), (0x3040, "Japanese"),
    (0x3100, "other"), (0x3130, "Korean"), (0x3190, ""), (0x3400, "Chinese"), (0x4DC0, ""), (0x4E00, "Chinese"),
    (0xA000, "other"), (0xAC00, "Korean"), (0xD7B0, ""), (0xF900, "Chinese"), (0xFB00, "other"), (0xFE00, ""),
    (0x20000, "Chinese"), (0x32000, ""),
)  # fmt: skip
_FIRSTS = np.array([first for first, _ in _SCRIPTS], dtype=np.uint32)
_NAMES = ("", *(name for _, name in _SCRIPTS))
_KNOWN = ("", *dict.fromkeys(name for _, name in _SCRIPTS if name))
_NUMBER = np.array([_KNOWN.index(name) for name in _NAMES])
SCRIPT_SAMPLE = 2000  # characters
_KANA_SHARE = 0.05
_ASCII_LETTER = re.compile("[A-Za-z]")


def text_faults(text: str) -> Iterator[Fault]:
    """Mojibake, invisible characters, keys and personal data in one row's text; at most one fault per subject."""
    if not text.isascii():
        if found := mojibake(text):
            yield "mojibake", "", found
        yield from (("invisible", name, place) for name, place in invisible(text))
    for literal, pattern in SECRETS:
        if literal in text and (match := pattern.search(text)):
            yield "secret", "", masked(match[0])
            break
    if "@" in text and (match := _EMAIL.search(text)):
        yield "personal_data", "e-mail address", masked(match[0])
    if number := phone(text):
        yield "personal_data", "phone number", masked(number)


def mojibake(text: str) -> str:
    """The first passage decoded with the wrong encoding, with its probable original; "" if there is none."""
    if (at := text.find("\ufffd")) >= 0:
        return f"{around(text, at, at + 1)} (U+FFFD)"
    if match := _GBK.search(text):
        return f"{around(text, match.start(), match.end())} (UTF-8 read as GBK)"
    for match in _LATIN.finditer(text):
        if meant := _unread(match[0]):
            return f"{around(text, match.start(), match.end())} (meant: {meant})"
    if match := _C1.search(text):
        meant = match[0].encode("latin-1").decode("cp1252", "replace")
        return f"{shown_at(text, match.start())} (Windows-1252 read as Latin-1; meant: {meant})"
    return ""


def phone(text: str) -> str:
    """The first digits formatted as a phone number; "" if there are none."""
    for match in _DIGITS.finditer(text):
        inside = _PHONE.fullmatch(match[0].strip())
        alone = text[max(0, match.start() - 1) : match.start()].strip("(") + text[match.end() : match.end() + 1]
        if inside and not any(c.isalnum() or c in "/=*+" for c in alone):
            return inside[0]
    return ""


def masked(secret: str) -> str:
    """The start and end of a secret, such as "sk-•••9f"."""
    if secret.startswith("-----"):
        return secret
    name, at, domain = secret.partition("@")
    if at:
        return f"{name[:1]}•••@•••.{domain.rpartition('.')[2]}"
    return f"{secret[:3]}•••{secret[-2:]}"


def around(text: str, start: int, end: int, *, margin: int = 12) -> str:
    """A span of text with its surrounding characters, on one line."""
    return " ".join(text[max(0, start - margin) : end + margin].split())


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """Finds a tokenizer's special tokens in text; `starts` are their first characters, which are fast to search for."""

    starts: tuple[str, ...]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, tokens: Iterable[str]) -> ControlTokens:
        """Builds it from these tokens; longest first, so that a token that begins with another one is named in full."""
        known = sorted({token for token in tokens if token.strip()}, key=lambda token: (-len(token), token))
        starts = tuple(sorted({token[:2] for token in known}))
        return cls(starts, any_of(known))

    def find(self, text: str) -> str:
        """The first special token in the text; "" if there is none."""
        if not any(start in text for start in self.starts):
            return ""
        match = self.pattern.search(text)
        return match[0] if match else ""


def script_of(text: str) -> str:
    """The script of most letters among the first 2,000 characters; "" if there are no letters."""
    if text.isascii():
        return "Latin" if _ASCII_LETTER.search(text) else ""
    points = np.frombuffer(text[:SCRIPT_SAMPLE].encode("utf-32-le", "replace"), dtype=np.uint32)
    counts = np.bincount(_NUMBER[np.searchsorted(_FIRSTS, points, side="right")], minlength=len(_KNOWN))
    counts[0] = 0
    total = int(counts.sum())
    if not total:
        return ""
    kana = _KNOWN.index("Japanese")
    if counts[kana] > _KANA_SHARE * total and counts[_KNOWN.index("Chinese")] + counts[kana] > total / 2:
        return "Japanese"
    return _KNOWN[int(counts.argmax())]


def _unread(text: str) -> str:
    """The longest prefix that is UTF-8 in the bytes its characters stand for, decoded; "" if it is implausible."""
    for size in range(len(text), 1, -1):
        try:
            meant = b"".join(_byte(character) for character in text[:size]).decode("utf-8")
        except UnicodeError:
            continue
        return meant if _PLAUSIBLE.fullmatch(meant) else ""
    return ""


def _byte(character: str) -> bytes:
    return bytes([ord(character)]) if ord(character) < 256 else character.encode("cp1252")
