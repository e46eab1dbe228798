"""Byte-level BPE with tiktoken: several times faster, for tokenizers whose ids it is proven to reproduce.

Both libraries merge neighbouring parts of a word, lowest rank first. They differ in three ways, each checked for the
tokenizer at hand:

- **Which neighbours merge.** `tokenizers` merges the pairs in its list; tiktoken any two parts that form a token,
  ranked by the token's id. `ranks` proves that both agree, or gives up.
- **Where words end.** The pattern is the same, the regex engines are not. All short strings over all classes of
  characters are compared, and every non-ASCII character when it is first seen.
- **Normalisation.** Texts that the tokenizer would normalise, and very long ones, are left to it.

Tokenizers and texts that do not qualify are encoded by the tokenizer.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np

Encode = Callable[[list[str]], list[list[int]]]

# One of each class of characters that pre-tokenizers tell apart, and some that they might.
_CLASSES = ("a", "Z", "1", ".", "'", "\n", " ", "\r", "é", "s", "_", "\t", "中", "\u0301", "\u3000", "😀", "$", "/")
_RUNS = ("'s", "'LL", "1234", "  ", "\n\n", "\r\n", "aB", "...", "ſ")
# What stands around a character that is tried: every class before it and behind it, and itself.
_CONTEXT = "a{0}a {0} {0}a 1{0}1.{0}.\n{0}\n {0}{0} '{0}'s{0}S\r\n{0}"
_LONGEST = 200_000  # characters; tiktoken's regular expressions are not made for more
_ABSENT = 1 << 30  # added to a byte, its id where the tokenizer has none
# Stands between texts that are encoded in one call; no two of it can overlap. Code points that no text should hold.
_BETWEEN, _BETWEEN_ID = "\ufdd0\ufdd1", _ABSENT + 256
_AT_A_TIME = 1 << 20  # characters of texts in one call
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# the same where single digits were split off before
_GPT2_BEHIND_DIGITS = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"


class FastBPE:
    """tiktoken's encoding for one tokenizer.

    Args:
        encoding: a `tiktoken.Encoding`.
        special: the added tokens that it knows.
        encode: the tokenizer's own encoding, to compare with and to fall back to.
        normalizes: whether the tokenizer normalises texts to NFC.
    """

    def __init__(self, encoding: Any, special: Iterable[str], encode: Encode, *, normalizes: bool) -> None:
        self._encoding, self._usual, self._normalizes = encoding, encode, normalizes
        self._special = set(special)
        self._with_between = self._special | {_BETWEEN}
        self._proven: set[str] = set()
        self._refused: set[str] = set()
        self._prove(set(map(chr, range(128))))
        self._all_of_ascii = not self._refused

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32, read-only; those of the tokenizer."""
        met = set().union(*(text for text in texts if not text.isascii()))
        self._prove(met - self._proven - self._refused)
        fits = [self.fits(text) for text in texts]
        if all(fits):
            return self._encode_all(texts)
        own = iter(self._encode_all([text for text, fit in zip(texts, fits, strict=True) if fit]))
        others = iter(as_arrays(self._usual([text for text, fit in zip(texts, fits, strict=True) if not fit])))
        return [next(own if fit else others) for fit in fits]

    def encode(self, text: str) -> list[int]:
        """tiktoken's ids."""
        ids: list[int] = self._encoding.encode(text, allowed_special=self._special, disallowed_special=())
        return ids

    def _encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """tiktoken's ids of many texts in few calls: a special token ends each as the end of a text does."""
        found: list[np.ndarray] = []
        start = characters = 0
        for number, text in enumerate(texts, start=1):
            characters += len(text)
            if characters >= _AT_A_TIME or number == len(texts):
                found += self._encode_joined(texts[start:number])
                start, characters = number, 0
        return found

    def _encode_joined(self, texts: Sequence[str]) -> list[np.ndarray]:
        text, allowed = _BETWEEN.join(texts), self._with_between
        joined = self._encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=()).view(np.int32)
        ends = np.flatnonzero(joined == _BETWEEN_ID).tolist()
        if len(ends) != len(texts) - 1:  # a text holds what stands between others
            return as_arrays(map(self.encode, texts))
        joined.flags.writeable = False
        return [joined[a:b] for a, b in zip([0, *(end + 1 for end in ends)], [*ends, len(joined)], strict=True)]

    def fits(self, text: str) -> bool:
        """True for a text that the tokenizer would not normalise and that has no character for which both differ."""
        if len(text) > _LONGEST:
            return False
        if self._all_of_ascii and text.isascii():
            return True
        return (not self._normalizes or unicodedata.is_normalized("NFC", text)) and self._refused.isdisjoint(text)

    def _prove(self, characters: set[str]) -> None:
        """Tries each character between all classes of others."""
        if not characters:
            return
        tried = sorted(characters)
        texts = [_CONTEXT.format(character) for character in tried]
        for character, text, expected in zip(tried, texts, self._usual(texts), strict=True):
            normal = not self._normalizes or unicodedata.is_normalized("NFC", text)
            known = self._proven if not normal or self.encode(text) == expected else self._refused
            known.add(character)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """What tiktoken needs to reproduce a tokenizer.

    Attributes:
        pattern: where words end.
        ranks: token -> id.
        added: added tokens -> id.
        normalizes: whether the tokenizer normalises texts to NFC.
    """

    pattern: str
    ranks: dict[bytes, int]
    added: dict[str, int]
    normalizes: bool


def as_arrays(ids: Iterable[Sequence[int]]) -> list[np.ndarray]:
    """Ids of each text as int32, read-only: the same array is given for the same text."""
    arrays = [np.array(own, dtype=np.int32) for own in ids]
    for own in arrays:
        own.flags.writeable = False
    return arrays


def may_be_fast(tokenizer: Any) -> bool:
    """Whether the tokenizer is one that `prove` can read, and tiktoken is installed (without it all is only slower)."""
    if not getattr(tokenizer, "is_fast", False) or getattr(tokenizer, "split_special_tokens", False):
        return False
    return find_spec("tiktoken") is not None


def prove(state: str, encode: Encode) -> Proven | None:
    """What tiktoken needs to give the same ids; None where that cannot be proven.

    Args:
        state: the tokenizer as JSON.
        encode: its own encoding.
    """
    tokenizer = json.loads(state)
    pattern, normalizer = split_pattern(tokenizer["pre_tokenizer"]), tokenizer["normalizer"]
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    if pattern is None or (normalizer or {"type": "NFC"})["type"] != "NFC" or not _are_plain(tokenizer["added_tokens"]):
        return None
    if (known := ranks(tokenizer["model"], set(added))) is None:
        return None
    proven = Proven(pattern=pattern, ranks=known, added=added, normalizes=normalizer is not None)
    return proven if _alike(made_of(proven, encode), encode) else None


def made_of(proven: Proven, encode: Encode) -> FastBPE:
    """The encoding itself; characters are still tried when they are met."""
    from tiktoken import Encoding

    added = {**proven.added, _BETWEEN: _BETWEEN_ID}
    encoding = Encoding("honed", pat_str=proven.pattern, mergeable_ranks=proven.ranks, special_tokens=added)
    return FastBPE(encoding, proven.added, encode, normalizes=proven.normalizes)


def split_pattern(pre_tokenizer: Any) -> str | None:
    """The pre-tokenizer as one pattern; None where it is none of those known."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    kinds = [step["type"] if step else None for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if kinds == ["Split", "ByteLevel"] and not steps[-1]["use_regex"]:
        own = steps[0]
        plain = own["behavior"] == "Isolated" and not own["invert"] and "Regex" in own["pattern"]
        return str(own["pattern"]["Regex"]) if plain else None
    if not steps[-1]["use_regex"]:
        return None
    if kinds == ["ByteLevel"]:
        return _GPT2
    return _GPT2_BEHIND_DIGITS if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] else None


def ranks(model: dict[str, Any], added: set[str]) -> dict[bytes, int] | None:
    """Token -> id for tiktoken, where both libraries make the same merges; None where that cannot be proven.

    Two parts x, y that stand side by side after all merges of lower rank than the token xy are also what remains of
    the text "xy" after these merges: nothing that merged across their outer ends could have left them whole. So each
    token can come about from one pair only, its `valid` one, whatever surrounds it. Where that pair is in the list of
    merges, and the list is in the order of the tokens' ids, both libraries merge it, and at the same time. Tokens
    without such a pair come about in neither, if tiktoken is not told of them.

    Source for the check: Berglund and van der Merwe, Formalizing BPE Tokenization, 2023 (arXiv 2309.08715).
    """
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model.get(option) for option in options):
        return None
    vocabulary: dict[str, int] = model["vocab"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    try:
        spelled = {_as_bytes(token): i for token, i in vocabulary.items() if token not in added}
        left = np.array([vocabulary[a] for a, _ in pairs], dtype=np.int64)
        right = np.array([vocabulary[b] for _, b in pairs], dtype=np.int64)
        made = np.array([vocabulary[a + b] for a, b in pairs], dtype=np.int64)
    except (KeyError, UnicodeError):  # not byte-level, or a merge of tokens that are not there
        return None
    alone = [i for token, i in spelled.items() if len(token) == 1]
    if len(pairs) == 0 or (np.diff(made) < 0).any() or made[0] < max(alone):
        return None
    reachable = {*alone, *made[valid(left, right, made)].tolist()}
    if model.get("ignore_merges") and len(reachable) < len(spelled):
        return None  # `tokenizers` takes such a token where it is a whole word
    # tiktoken needs an id for every byte; `FastBPE` is given no text that would show those that are made up here
    absent = {bytes([value]): _ABSENT + value for value in range(256)}
    return absent | {token: i for token, i in spelled.items() if i in reachable}


def valid(left: np.ndarray, right: np.ndarray, made: np.ndarray) -> np.ndarray:
    """bool (merges,): whether `made` comes about from this pair, when all merges of lower ids have been made before.

    Args:
        left, right, made: int64 (merges,), ids; `made` does not decrease. Ids that are never made are single bytes.
    """
    size = int(made[-1]) + 1
    parts = np.tile(np.arange(size), (2, 1))  # of each token its left and right part; of a byte itself
    first = np.unique(made, return_index=True)[1]
    parts[:, made[first]] = left[first], right[first]
    lookup, chosen = _Pairs(left, right, made), np.zeros(len(made), dtype=bool)
    while True:
        # right for the lowest ids at first, then for more and more: each needs the parts of lower ids only
        found = _stand_side_by_side(lookup, parts)
        if np.array_equal(found, chosen):
            return chosen
        chosen = found
        parts[:, made[chosen]] = left[chosen], right[chosen]


class _Pairs:
    """The merges, and a look-up of what a pair makes."""

    def __init__(self, left: np.ndarray, right: np.ndarray, made: np.ndarray) -> None:
        self.left, self.right, self.made = left, right, made
        self._size = int(made[-1]) + 1
        keys = left * self._size + right
        order = np.argsort(keys)
        self._keys, self._made = keys[order], made[order]

    def made_before(self, a: np.ndarray, b: np.ndarray, limit: np.ndarray) -> np.ndarray:
        """bool: whether each pair (a, b) makes a token of an id below its limit."""
        key = a * self._size + b
        at = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return (self._keys[at] == key) & (self._made[at] < limit)


def _stand_side_by_side(pairs: _Pairs, parts: np.ndarray) -> np.ndarray:
    """bool (merges,): no merge of a lower id goes across the border of the pair.

    The merges at the border are undone, latest first; at each stage the two tokens that touch it must be no pair that
    would have been merged by then.
    """
    answer = np.ones(len(pairs.made), dtype=bool)
    index, a, b, limit = np.arange(len(answer)), pairs.left.copy(), pairs.right.copy(), pairs.made.copy()
    while len(index):
        merged = pairs.made_before(a, b, limit)
        answer[index[merged]] = False
        inner_a, inner_b = parts[1, a], parts[0, b]
        # bytes cannot be undone; of two tokens the later is undone first, at equal ids the right one
        undo_a = (inner_a != a) & ((a > b) | (inner_b == b))
        undo_b = ~undo_a & (inner_b != b)
        limit = np.where(undo_a, a, b + 1)
        a, b = np.where(undo_a, inner_a, a), np.where(undo_b, inner_b, b)
        left_over = ~merged & (undo_a | undo_b)
        index, a, b, limit = index[left_over], a[left_over], b[left_over], limit[left_over]
    return answer


def _alike(fast: FastBPE, encode: Encode) -> bool:
    """True when all short strings of classes have the same ids."""
    classes = (*_CLASSES, *_RUNS)
    groups = (product(classes, repeat=2), product(_CLASSES[:9], classes, _CLASSES[:9]))
    texts = [text for group in groups for text in map("".join, group) if fast.fits(text)]
    return [fast.encode(text) for text in texts] == encode(texts)


def _are_plain(added: list[dict[str, Any]]) -> bool:
    """Found wherever they are spelled, none inside another, and none changes the text beside it."""
    texts = [token["content"] for token in added]
    changing = ("lstrip", "rstrip", "single_word")
    if any(token[option] for token in added for option in changing):
        return False
    if any(character in text for text in texts for character in _BETWEEN):
        return False
    return not any(a != b and a in b for a in texts for b in texts)


_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [value for value in range(256) if value not in set(_PRINTABLE)]
# GPT-2's alphabet: a printable character for each byte -> the byte, as the code point of the same number; other
# characters -> one that is no byte
_BYTE_OF = {**dict.fromkeys(_OTHERS, 0xFFFF), **{256 + n: value for n, value in enumerate(_OTHERS)}}


def _as_bytes(token: str) -> bytes:
    return token.translate(_BYTE_OF).encode("latin-1")
