"""Texts -> ids with a tokenizer: the ids that it gives itself, sooner.

Most of a tokenizer's time goes into words that it has met before. Where it is proven that a text may be cut at the
spaces between words without changing a single id, each distinct word is encoded once and looked up afterwards:

    "Give three tips"  ->  "Give" | " three" | " tips"  ->  35127 | 2326 | 10414

The proof (`cuts_at_spaces`) is made for the tokenizer at hand, over all short strings of all character classes around a
space. A tokenizer that fails it, or is no fast one, is called as usual.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import chain, product, repeat
from typing import Any

import numpy as np

# A space between two characters that are no white space: the only place of a cut.
_CUT = re.compile(r" (?<=\S )(?=\S)")
_BESIDE_WHITE_SPACE = re.compile(r"  |[^\S ] | [^\S ]")
# Marks a text's first word, which has no space before it. A lone surrogate stands in no text that can be encoded.
_FIRST = "\ud800"
# One of each class of characters that pre-tokenizers tell apart, and some that they might.
_CLASSES = ("a", "Z", "1", ".", "'", "s", "_", "\n", "\t", " ", "\u3000", "\r", "é", "中", "\u0301", "😀", "'s", "$")
USUAL_CHARACTERS = 200_000
_MOST_TOKENS = 1 << 23  # remembered; 32 MB of ids, and about 200 MB with the words
_WORDS_AT_A_TIME = 100  # longer joined texts are slower per character

# GPT-2's pattern, which the byte-level pre-tokenizer applies by itself.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

Encode = Callable[[list[str]], list[list[int]]]
Coded = tuple[np.ndarray, np.ndarray]  # ids of many strings, one after the other, and how many each has
Learn = Callable[[list[str]], Coded]


class Encoder:
    """Encodes texts without adding special tokens.

    The first texts are encoded as usual; the proof is made when there are so many that it pays.

    Args:
        tokenizer: a transformers tokenizer; its state is not changed.
        usual: how many characters are encoded as usual before words are looked up.
    """

    def __init__(self, tokenizer: Any, *, usual: int = USUAL_CHARACTERS) -> None:
        self._tokenizer = tokenizer
        self._encode = usual_encoder(tokenizer)
        self._left = usual
        self._words: _Table | None = None
        self._proven = False

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32; those of `tokenizer(text, add_special_tokens=False)`."""
        if not texts:
            return []
        if not self.by_words():
            self._left -= sum(map(len, texts))
            return [np.array(ids, dtype=np.int32) for ids in self._encode(list(texts))]
        assert self._words is not None
        words: list[str] = []
        counts = []
        for text in texts:
            own = cut(text)
            own[0] = _FIRST + own[0]
            words += own
            counts.append(len(own))
        ids, lengths = self._words(words)
        return np.split(ids, np.cumsum(lengths)[np.cumsum(counts) - 1][:-1])

    def by_words(self) -> bool:
        """Whether the next texts are looked up word by word."""
        if self._left <= 0 and not self._proven:
            self._proven = True
            separator = _separator(self._tokenizer)
            if separator is not None and cuts_at_spaces(self._encode, separator):
                self._words = _word_table(self._tokenizer, self._encode, separator)
        return self._words is not None


class _Table:
    """Ids of many strings in one array, and where each one's begin; bounded in size.

    Args:
        learn: gives the ids of strings not met before, one after the other, and how many each has.
    """

    def __init__(self, learn: Learn) -> None:
        self._learn = learn
        self._number: dict[str, int] = {}
        self._ids = np.empty(0, dtype=np.int32)
        self._starts = self._lengths = np.empty(0, dtype=np.int64)

    def __call__(self, strings: list[str]) -> Coded:
        """Ids of all strings, one after the other, int32, and how many each has, int64."""
        if len(self._ids) > _MOST_TOKENS:
            self._number, self._ids = {}, self._ids[:0]
            self._starts, self._lengths = self._starts[:0], self._lengths[:0]
        found = np.fromiter(map(self._number.get, strings, repeat(-1)), dtype=np.int64, count=len(strings))
        unknown = np.flatnonzero(found < 0).tolist()
        if unknown:
            self._add(list(dict.fromkeys(strings[n] for n in unknown)))
            found[unknown] = [self._number[strings[n]] for n in unknown]
        lengths = self._lengths[found]
        ends = np.cumsum(lengths)
        # each token's place in the table: its string's start, and how far into the string it is
        places = np.repeat(self._starts[found] - (ends - lengths), lengths) + np.arange(ends[-1])
        return self._ids[places], lengths

    def _add(self, strings: list[str]) -> None:
        ids, lengths = self._learn(strings)
        first = len(self._ids)
        self._number.update(zip(strings, range(len(self._number), len(self._number) + len(strings)), strict=True))
        self._starts = np.concatenate([self._starts, first + np.cumsum(lengths) - lengths])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._ids = np.concatenate([self._ids, ids])


def _word_table(tokenizer: Any, encode: Encode, separator: tuple[str, int]) -> _Table:
    """Words are put together from parts, where the pre-tokenizer's way of splitting them is known and proven."""

    def learn_whole(texts: list[str]) -> Coded:
        return _flat(_together(texts, encode, separator))

    def learn_words(words: list[str]) -> Coded:
        return learn_whole([_spaced(word) for word in words])

    patterns = split_patterns(tokenizer)
    if not patterns or not splits_alike(encode, patterns, separator):
        return _Table(learn_words)
    parts = _Table(learn_whole)
    # added tokens are found before pre-tokenization, and may begin or end inside a part
    starts = {token.content[0] for token in tokenizer.added_tokens_decoder.values()}

    def learn_by_parts(words: list[str]) -> Coded:
        plain = [_spaced(word) for word in words]
        divided = [split(word, patterns) if word.isascii() and starts.isdisjoint(word) else [word] for word in plain]
        ids, lengths = parts(list(chain.from_iterable(divided)))
        counts = np.fromiter(map(len, divided), dtype=np.int64, count=len(divided))
        return ids, np.add.reduceat(lengths, np.cumsum(counts) - counts)

    return _Table(learn_by_parts)


def _spaced(word: str) -> str:
    return word[1:] if word[0] == _FIRST else " " + word


def _together(texts: list[str], encode: Encode, separator: tuple[str, int]) -> list[list[int]]:
    """Many short texts cost least when joined by a token that no merge crosses."""
    text, mark = separator
    if any(text in one for one in texts):
        return encode(texts)
    groups = [texts[n : n + _WORDS_AT_A_TIME] for n in range(0, len(texts), _WORDS_AT_A_TIME)]
    return [ids for joined in encode([text.join(group) for group in groups]) for ids in divide(joined, mark)]


def _flat(coded: list[list[int]]) -> Coded:
    lengths = np.fromiter(map(len, coded), dtype=np.int64, count=len(coded))
    return np.fromiter(chain.from_iterable(coded), dtype=np.int32, count=int(lengths.sum())), lengths


def usual_encoder(tokenizer: Any) -> Encode:
    """The tokenizer's own way, by the library underneath where nothing is set that would pad or cut."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None and fast.padding is None and fast.truncation is None and not _splits_special(tokenizer):
        return lambda texts: [coded.ids for coded in fast.encode_batch(texts, add_special_tokens=False)]
    return lambda texts: [
        list(ids) for ids in tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    ]


def cut(text: str) -> list[str]:
    """The text's words; joined by single spaces they give the text again."""
    if _BESIDE_WHITE_SPACE.search(text) is None and text[:1] != " " and text[-1:] != " ":
        return text.split(" ")
    return _CUT.split(text)


def divide(ids: list[int], mark: int) -> list[list[int]]:
    """The stretches of `ids` between the marks."""
    ends = [n for n, i in enumerate(ids) if i == mark]
    return [ids[a + 1 : b] for a, b in zip([-1, *ends], [*ends, len(ids)], strict=True)]


def cuts_at_spaces(encode: Encode, separator: tuple[str, int]) -> bool:
    """True when this tokenizer gives the same ids for a text and for its words.

    Pre-tokenizers look at the classes of a few neighbouring characters, so all strings of up to two classes on one side
    of a space and one on the other are tried. The separator is tried with them: it joins the pairs.
    """
    singles = list(_CLASSES)
    doubles = singles + ["".join(pair) for pair in product(_CLASSES, repeat=2)]
    pairs = dict.fromkeys([*product(doubles, singles), *product(singles, doubles)])
    sides = [(left, right) for left, right in pairs if not left[-1].isspace() and not right[0].isspace()]
    words = list(dict.fromkeys([*(left for left, _ in sides), *(" " + right for _, right in sides)]))
    alone = dict(zip(words, encode(words), strict=True))
    text, mark = separator
    whole = divide(encode([text.join(f"{left} {right}" for left, right in sides)])[0], mark)
    return whole == [alone[left] + alone[" " + right] for left, right in sides]


def split_patterns(tokenizer: Any) -> list[Any]:
    """The pre-tokenizer's own splitting, as patterns to apply one after the other; [] where it is none of those known.

    Source: the pre-tokenizers of the `tokenizers` library, serialised.
    """
    import regex

    state = json.loads(tokenizer.backend_tokenizer.pre_tokenizer.__getstate__())
    found = []
    for step in state.get("pretokenizers", [state]):
        kind = step.get("type")
        if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
            found.append(regex.compile(step["pattern"]["Regex"]))
        elif kind == "Digits" and step["individual_digits"]:
            found.append(regex.compile(r"\d|\D+"))
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            found += [regex.compile(_GPT2)] if step["use_regex"] else []
        else:
            return []
    return found


def split(word: str, patterns: Sequence[Any]) -> list[str]:
    """What the patterns split off; the word itself where they would lose a character."""
    parts = patterns[0].findall(word)
    for pattern in patterns[1:]:
        parts = [found for part in parts for found in pattern.findall(part)]
    return parts if parts and sum(map(len, parts)) == len(word) else [word]


def splits_alike(encode: Encode, patterns: Sequence[Any], separator: tuple[str, int]) -> bool:
    """True when every short string of ASCII classes has the ids of its parts."""
    classes = [one for one in _CLASSES if one.isascii()]
    texts = ["".join(text) for n in (1, 2, 3) for text in product(classes, repeat=n)]
    divided = [split(text, patterns) for text in texts]
    parts = list(dict.fromkeys(chain.from_iterable(divided)))
    known = dict(zip(parts, encode(parts), strict=True))
    whole = divide(encode([separator[0].join(texts)])[0], separator[1])
    return whole == [[i for part in own for i in known[part]] for own in divided]


def _separator(tokenizer: Any) -> tuple[str, int] | None:
    """A special token that stands alone in any text, with its id; None where words cannot be told apart by one."""
    if not getattr(tokenizer, "is_fast", False) or _splits_special(tokenizer):
        return None
    added = tokenizer.added_tokens_decoder
    if any(token.lstrip or token.rstrip or " " in token.content for token in added.values()):
        return None  # a token that takes the spaces beside it, or holds one, would be torn by a cut
    alone = [(token.content, mark) for mark, token in added.items() if token.special and not token.normalized]
    return alone[0] if alone else None


def _splits_special(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "split_special_tokens", False))
