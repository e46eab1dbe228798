"""Byte-level BPE with tiktoken: several times faster, for tokenizers whose ids it is proven to reproduce.

Both libraries merge adjacent parts of a word, lowest rank first. They differ in three ways, each checked for the given
tokenizer:

- **Which parts merge.** `tokenizers` merges the pairs in its list; tiktoken merges any two parts that form a token,
  ranked by the token's id. `ranks` proves that both agree, or gives up.
- **Where words end.** The pattern is the same, the regex engines differ. All short strings over all character classes
  are compared, and every non-ASCII character when it first occurs.
- **Normalisation.** Texts that the tokenizer would normalise, and very long ones, are encoded by the tokenizer.

The tokenizer also encodes texts that do not qualify, and everything if it does not qualify itself.
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

# One character of each class that pre-tokenizers distinguish, and some that they might.
_CLASSES = ("a", "Z", "1", ".", "'", "\n", " ", "\r", "é", "s", "_", "\t", "中", "\u0301", "\u3000", "😀", "$", "/")
_RUNS = ("'s", "'LL", "1234", "  ", "\n\n", "\r\n", "aB", "...", "ſ")
# The context in which a character is tried: each class before and after it, and itself.
_CONTEXT = "a{0}a {0} {0}a 1{0}1.{0}.\n{0}\n {0}{0} '{0}'s{0}S\r\n{0}"
_LONGEST = 200_000  # characters; tiktoken's regular expressions are not designed for longer texts
_ABSENT = 1 << 30  # added to a byte: its id if the tokenizer has none
# Separates texts that are encoded in one call; cannot overlap with itself. Noncharacters that no text should contain.
_BETWEEN, _BETWEEN_ID = "\ufdd0\ufdd1", _ABSENT + 256
_AT_A_TIME = 1 << 20  # characters per call
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# the same pattern, with single digits split off first
_GPT2_BEHIND_DIGITS = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"


class FastBPE:
    """tiktoken's encoding for one tokenizer.

    Args:
        encoding: a `tiktoken.Encoding`.
        special: its added tokens.
        encode: the tokenizer's own encoding, for comparison and as a fallback.
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
        """Returns the tokenizer's ids of each text, int32, read-only."""
        met = set().union(*(text for text in texts if not text.isascii()))
        self._prove(met - self._proven - self._refused)
        fits = [self.fits(text) for text in texts]
        if all(fits):
            return self._encode_all(texts)
        own = iter(self._encode_all([text for text, fit in zip(texts, fits, strict=True) if fit]))
        others = iter(as_arrays(self._usual([text for text, fit in zip(texts, fits, strict=True) if not fit])))
        return [next(own if fit else others) for fit in fits]

    def encode(self, text: str) -> list[int]:
        """Returns tiktoken's ids."""
        ids: list[int] = self._encoding.encode(text, allowed_special=self._special, disallowed_special=())
        return ids

    def _encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns tiktoken's ids of many texts in few calls; a special token between them acts as the end of a text."""
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
        if len(ends) != len(texts) - 1:  # a text contains the separator
            return as_arrays(map(self.encode, texts))
        joined.flags.writeable = False
        return [joined[a:b] for a, b in zip([0, *(end + 1 for end in ends)], [*ends, len(joined)], strict=True)]

    def fits(self, text: str) -> bool:
        """Whether the tokenizer would not normalise the text, and tiktoken encodes all its characters the same."""
        if len(text) > _LONGEST:
            return False
        if self._all_of_ascii and text.isascii():
            return True
        return (not self._normalizes or unicodedata.is_normalized("NFC", text)) and self._refused.isdisjoint(text)

    def _prove(self, characters: set[str]) -> None:
        """Compares both libraries on each character in the context of all classes."""
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
    """The data with which tiktoken reproduces a tokenizer.

    Attributes:
        pattern: matches one word.
        ranks: token -> id.
        added: added tokens -> id.
        normalizes: whether the tokenizer normalises texts to NFC.
    """

    pattern: str
    ranks: dict[bytes, int]
    added: dict[str, int]
    normalizes: bool


def as_arrays(ids: Iterable[Sequence[int]]) -> list[np.ndarray]:
    """Returns the ids of each text as int32; read-only, because equal texts share one array."""
    arrays = [np.array(own, dtype=np.int32) for own in ids]
    for own in arrays:
        own.flags.writeable = False
    return arrays


def may_be_fast(tokenizer: Any) -> bool:
    """Whether `prove` can read the tokenizer and tiktoken is installed (without it, encoding is only slower)."""
    if not getattr(tokenizer, "is_fast", False) or getattr(tokenizer, "split_special_tokens", False):
        return False
    return find_spec("tiktoken") is not None


def prove(state: str, encode: Encode) -> Proven | None:
    """Returns the data with which tiktoken produces the same ids; None if that cannot be proven.

    Args:
        state: the tokenizer as JSON.
        encode: the tokenizer's own encoding.
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
    """Builds the encoding; other characters are tested when they first occur."""
    from tiktoken import Encoding

    added = {**proven.added, _BETWEEN: _BETWEEN_ID}
    encoding = Encoding("honed", pat_str=proven.pattern, mergeable_ranks=proven.ranks, special_tokens=added)
    return FastBPE(encoding, proven.added, encode, normalizes=proven.normalizes)


def split_pattern(pre_tokenizer: Any) -> str | None:
    """Returns the pre-tokenizer as one pattern; None if it is unknown."""
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
    """Returns token -> id for tiktoken if both libraries make the same merges; None if that cannot be proven.

    Suppose two parts x, y are adjacent after all merges of lower rank than the token xy. Then they are also what these
    merges leave of the text "xy" alone: no merge across their outer ends happened, or they would not be whole. So only
    one pair, the `valid` one, can form each token, whatever surrounds it. If that pair is in the list of merges, and
    the list is in the order of the tokens' ids, both libraries merge it at the same point. Tokens without such a pair
    are formed by neither library if they are left out of tiktoken's ranks.

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
    except (KeyError, UnicodeError):  # not byte-level, or a merge of missing tokens
        return None
    alone = [i for token, i in spelled.items() if len(token) == 1]
    if len(pairs) == 0 or (np.diff(made) < 0).any() or made[0] < max(alone):
        return None
    reachable = {*alone, *made[valid(left, right, made)].tolist()}
    if model.get("ignore_merges") and len(reachable) < len(spelled):
        return None  # `tokenizers` uses such a token if it is a whole word
    # tiktoken needs an id for every byte; `FastBPE` passes it no text in which the made-up ids could appear
    absent = {bytes([value]): _ABSENT + value for value in range(256)}
    return absent | {token: i for token, i in spelled.items() if i in reachable}


def valid(left: np.ndarray, right: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Whether each pair forms `made` after all merges of lower ids; bool (merges,).

    Args:
        left, right, made: int64 (merges,), ids; `made` is non-decreasing. Ids that are not in `made` are single bytes.
    """
    size = int(made[-1]) + 1
    parts = np.tile(np.arange(size), (2, 1))  # left and right part of each token; a byte is its own part
    first = np.unique(made, return_index=True)[1]
    parts[:, made[first]] = left[first], right[first]
    lookup, chosen = _Pairs(left, right, made), np.zeros(len(made), dtype=bool)
    while True:
        # correct for the lowest ids first, then for more and more: each depends on parts of lower ids only
        found = _stand_side_by_side(lookup, parts)
        if np.array_equal(found, chosen):
            return chosen
        chosen = found
        parts[:, made[chosen]] = left[chosen], right[chosen]


class _Pairs:
    """The merges, with a look-up of the token that a pair forms."""

    def __init__(self, left: np.ndarray, right: np.ndarray, made: np.ndarray) -> None:
        self.left, self.right, self.made = left, right, made
        self._size = int(made[-1]) + 1
        keys = left * self._size + right
        order = np.argsort(keys)
        self._keys, self._made = keys[order], made[order]

    def made_before(self, a: np.ndarray, b: np.ndarray, limit: np.ndarray) -> np.ndarray:
        """Whether each pair (a, b) forms a token with an id below its limit, bool."""
        key = a * self._size + b
        at = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return (self._keys[at] == key) & (self._made[at] < limit)


def _stand_side_by_side(pairs: _Pairs, parts: np.ndarray) -> np.ndarray:
    """Whether no merge of a lower id crosses the border of each pair; bool (merges,).

    The merges next to the border are undone, latest first. At each stage, the two tokens at the border must not be a
    pair that would have been merged by then.
    """
    answer = np.ones(len(pairs.made), dtype=bool)
    index, a, b, limit = np.arange(len(answer)), pairs.left.copy(), pairs.right.copy(), pairs.made.copy()
    while len(index):
        merged = pairs.made_before(a, b, limit)
        answer[index[merged]] = False
        inner_a, inner_b = parts[1, a], parts[0, b]
        # bytes cannot be undone; of two tokens, the one merged later is undone first, for equal ids the right one
        undo_a = (inner_a != a) & ((a > b) | (inner_b == b))
        undo_b = ~undo_a & (inner_b != b)
        limit = np.where(undo_a, a, b + 1)
        a, b = np.where(undo_a, inner_a, a), np.where(undo_b, inner_b, b)
        left_over = ~merged & (undo_a | undo_b)
        index, a, b, limit = index[left_over], a[left_over], b[left_over], limit[left_over]
    return answer


def _alike(fast: FastBPE, encode: Encode) -> bool:
    """Whether all short strings over the character classes have the same ids."""
    classes = (*_CLASSES, *_RUNS)
    groups = (product(classes, repeat=2), product(_CLASSES[:9], classes, _CLASSES[:9]))
    texts = [text for group in groups for text in map("".join, group) if fast.fits(text)]
    return [fast.encode(text) for text in texts] == encode(texts)


def _are_plain(added: list[dict[str, Any]]) -> bool:
    """Whether added tokens match wherever they occur, none contains another, and none changes the adjacent text."""
    texts = [token["content"] for token in added]
    changing = ("lstrip", "rstrip", "single_word")
    if any(token[option] for token in added for option in changing):
        return False
    if any(character in text for text in texts for character in _BETWEEN):
        return False
    return not any(a != b and a in b for a in texts for b in texts)


_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [value for value in range(256) if value not in set(_PRINTABLE)]
# GPT-2's alphabet, as printable character -> code point equal to the byte it stands for; other characters -> a code
# point that is no byte
_BYTE_OF = {**dict.fromkeys(_OTHERS, 0xFFFF), **{256 + n: value for n, value in enumerate(_OTHERS)}}


def _as_bytes(token: str) -> bytes:
    return token.translate(_BYTE_OF).encode("latin-1")
