"""Near-duplicate texts by MinHash: signatures of many texts at once, compared in groups.

    text -> words -> shingles (3 consecutive words) -> the minimum of each of 64 hashes over them: the signature

The fraction of places in which two signatures agree estimates the fraction of common shingles (Jaccard similarity; the
standard error with 64 places is at most 0.06). Texts that agree in any band of four adjacent places are candidates; a
candidate counts if the whole signatures agree well enough. Only numpy is needed, and no text is kept.

Source: Broder, On the resemblance and containment of documents (1997); bands as in Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, ch. 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

PLACES = 64  # hashes per signature
BAND = 4  # adjacent places that must all agree: at similarity 0.8, 99.98% of pairs are found
NEAR = 0.8
SHINGLE = 3  # words
WORD_BYTES = 8  # a word is identified by its first 8 bytes, including what follows a shorter word
_ODD = np.random.default_rng(20).integers(0, 2**63, size=PLACES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_NONE = np.uint64(2**64 - 1)
_END = (b" " + b"\0" * WORD_BYTES) * 2 + b" "  # two empty words: no shingle extends into the next text
# ASCII letters to lower case; other ASCII characters except digits separate words; bytes of other scripts are kept.
_FOLD = bytes(c + 32 if 65 <= c <= 90 else c if c >= 128 or chr(c).isalnum() else 32 for c in range(256))


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Returns one signature per text: uint32, shape (texts, PLACES). All texts without words have the same one."""
    hashes, starts = _shingles(texts)
    made = np.empty((len(texts), PLACES), dtype=np.uint32)
    for place, odd in enumerate(_ODD):
        made[:, place] = np.minimum.reduceat((hashes * odd) >> np.uint64(32), starts) if len(texts) else 0
    return made


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the fraction of equal places along the last axis: an estimate of the Jaccard similarity."""
    return np.mean(first == second, axis=-1)


def near_groups(signed: np.ndarray, *, least: float = NEAR) -> np.ndarray:
    """Returns for each text the index of the first text in its group of texts near it, directly or through others.

    In each bucket, candidates are compared only with the first, so the time is linear in the texts, not in the pairs.

    Args:
        signed: signatures, shape (texts, PLACES).
        least: minimum similarity of near texts.
    """
    near = (
        (first, other)
        for first, others in _buckets(signed)
        for other in others[similarity(signed[others], signed[first]) >= least].tolist()
    )
    return connected(len(signed), near)


def connected(count: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """Returns for each of `count` indices the smallest index connected to it by the pairs: int64, shape (count,)."""
    parents = list(range(count))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    for one, other in pairs:
        least, most = sorted((root(one), root(other)))
        parents[most] = least
    return np.array([root(number) for number in range(count)], dtype=np.int64)


def nearest_in(known: np.ndarray, signed: np.ndarray) -> np.ndarray:
    """Returns for each row of `signed` the index of a near row of `known`, or -1."""
    found = np.full(len(signed), -1, dtype=np.int64)
    if not len(known):
        return found
    for band in range(0, PLACES, BAND):
        first_with = {key: n for n, key in reversed(list(enumerate(_keys(known, band).tolist())))}
        open_ = np.flatnonzero(found < 0)
        candidates = np.array([first_with.get(key, -1) for key in _keys(signed[open_], band).tolist()], dtype=np.int64)
        met = candidates >= 0
        rows, others = open_[met], candidates[met]
        near = similarity(signed[rows], known[others]) >= NEAR
        found[rows[near]] = others[near]
    return found


def _shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns hashes of all texts' shingles, one per word, and where each text's shingles start (never empty)."""
    folded = [b" ".join(text.encode("utf-8", "replace").translate(_FOLD).split()) for text in texts]
    data = np.frombuffer(b"".join(one + _END for one in folded) + _END, dtype=np.uint8)
    lengths = np.array([len(one) + len(_END) for one in folded], dtype=np.int64)
    begins = _word_starts(data[: -len(_END)])
    words = _mixed(_eight_bytes(data, begins))
    hashes = words.copy()
    for step in range(1, SHINGLE):
        hashes[:-step] = _mixed(hashes[:-step] * _MIX[0] + words[step:])
    hashes[data[begins] == 0] = _NONE
    firsts = np.cumsum(lengths) - lengths
    return hashes, np.searchsorted(begins, firsts)


def _word_starts(data: np.ndarray) -> np.ndarray:
    """Returns where words begin: after a space, and at each character of more than two bytes (Chinese, ...)."""
    is_word = data != 32
    start = is_word.copy()
    start[1:] &= ~is_word[:-1]
    start |= data >= 0xE0
    return np.flatnonzero(start)


def _eight_bytes(data: np.ndarray, begins: np.ndarray) -> np.ndarray:
    words = np.zeros(len(begins), dtype=np.uint64)
    for byte in range(WORD_BYTES):
        words |= data[begins + byte].astype(np.uint64) << np.uint64(8 * byte)
    return words


def _mixed(values: np.ndarray) -> np.ndarray:
    """Makes every bit of the result depend on every bit of the value (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[1]
    values = (values ^ (values >> np.uint64(27))) * _MIX[2]
    return values ^ (values >> np.uint64(31))


def _buckets(signed: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the first and the other members of each group of texts that agree in a whole band."""
    for band in range(0, PLACES, BAND):
        keys = _keys(signed, band)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
        for start, end in pairwise(edges.tolist()):
            if end - start > 1:
                yield int(order[start]), order[start + 1 : end]


def _keys(signed: np.ndarray, band: int) -> np.ndarray:
    """Returns uint64 (texts,) keys, equal if all places of the band are equal."""
    keys = np.zeros(len(signed), dtype=np.uint64)
    for place in range(band, band + BAND):
        keys = _mixed(keys * _MIX[0] + signed[:, place])
    return keys
