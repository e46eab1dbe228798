"""MinHash against exact Jaccard similarity."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from honed.data.mix.minhash import NEAR, PLACES, SHINGLE, connected, near_groups, nearest_in, signatures, similarity

WORDS = [f"word{n}" for n in range(100, 500)]  # all of the seven bytes by which words are told apart exactly


def jaccard(first: str, second: str) -> float:
    """Triples of words in both texts over those in either, exactly; a Chinese character is a word."""
    one, two = map(shingles, (first, second))
    return len(one & two) / len(one | two) if one or two else 1.0


def shingles(source: str) -> set[tuple[str, ...]]:
    words = [*re.findall(r"[a-z0-9]+|[^\W\d_a-z]", source.lower()), "", ""]
    return {tuple(words[n : n + SHINGLE]) for n in range(len(words) - 2)}


def text(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(source: str, seed: int, words: int) -> str:
    parts, rng = source.split(), random.Random(seed)
    for place in rng.sample(range(len(parts)), words):
        parts[place] = f"x{seed % 1000:03}{place:03}"
    return " ".join(parts)


def test_estimates_follow_exact_similarity() -> None:
    pairs = [(text(n), changed(text(n), n, n % 12)) for n in range(200)]
    exact = np.array([jaccard(a, b) for a, b in pairs])
    first, second = signatures([a for a, _ in pairs]), signatures([b for _, b in pairs])
    found = similarity(first, second)
    assert exact.min() < 0.4 and exact.max() == 1
    assert np.abs(found - exact).max() < 0.25 and np.abs(found - exact).mean() < 0.05
    assert abs(float(np.mean(found - exact))) < 0.01  # no bias


@pytest.mark.parametrize(
    ("one", "other", "least", "most"),
    [
        ("The quick, brown fox!", "the QUICK brown  fox", 1, 1),
        ("a b c", "a b c", 1, 1),
        ("", "   ", 1, 1),
        ("", "words here", 0, 0),
        ("one two three four", "five six seven eight", 0, 0),
        ("今天天气很好我们去公园散步", "今天天气很好我们去公园散步吧", 0.4, 0.95),
        ("今天天气很好", "我不知道答案", 0, 0),
    ],
)
def test_exact_similarity(one: str, other: str, least: float, most: float) -> None:
    assert least <= jaccard(one, other) <= most


def test_a_text_is_signed_alike_whatever_stands_beside_it() -> None:
    texts = ["", "a", text(1), "zwölf Boxkämpfer \x00 jagen", "好", text(2)]
    alone = np.concatenate([signatures([one]) for one in texts])
    assert (signatures(texts) == alone).all()
    assert (signatures(texts[::-1])[::-1] == alone).all()
    assert signatures([]).shape == (0, PLACES)


def test_groups_name_their_first_member() -> None:
    base = [text(n, 100) for n in range(300)]
    rows = [*base, base[7], changed(base[7], 5, 2), changed(base[200], 6, 3)]
    groups = near_groups(signatures(rows))
    assert groups[300:].tolist() == [7, 7, 200]
    assert groups[:300].tolist() == list(range(300))


def test_nearly_all_near_pairs_are_found_and_no_far_ones() -> None:
    base = [text(n, 80) for n in range(400)]
    near = [changed(one, n, 1) for n, one in enumerate(base)]
    exact = np.array([jaccard(a, b) for a, b in zip(base, near, strict=True)])
    found = nearest_in(signatures(base), signatures(near))
    sure = exact >= NEAR + 0.07
    assert sure.sum() > 50 and (found[sure] == np.flatnonzero(sure)).mean() > 0.9
    far = nearest_in(signatures(base), signatures([text(n, 80) for n in range(1000, 1400)]))
    assert (far == -1).all()
    assert (nearest_in(signatures([]), signatures(base)) == -1).all()


@given(pairs=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12))
def test_connected_numbers_are_named_by_the_least_of_them(pairs: list[tuple[int, int]]) -> None:
    groups = [{number} for number in range(12)]
    for one, other in pairs:
        together = groups[one] | groups[other]
        for number in together:
            groups[number] = together
    assert connected(12, pairs).tolist() == [min(group) for group in groups]
