"""Words, distinct-n and repeats, by hand and by the slow way."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from honed.evaluate.text_measures import distinct, longest_repeat, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.5!", ["It", "'", "s", "3", ".", "5", "!"]),
        ("天空是蓝色 sky", ["天", "空", "是", "蓝", "色", "sky"]),
        ("abc天def", ["abc", "天", "def"]),
        ("カタかな", ["カ", "タ", "か", "な"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("déjà vu_2", ["déjà", "vu_2"]),
        ("  \n", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text())
@example("㊀ㄅ䷀a")
def test_words_hold_every_character_that_is_no_space(text: str) -> None:
    assert "".join(words(text)) == "".join(c for c in text if not c.isspace())


def test_distinct_by_hand() -> None:
    items = list("abab")  # ab ba ab; aba bab
    assert [distinct(items, n) for n in (1, 2, 3, 4, 5)] == [2 / 4, 2 / 3, 2 / 2, 1.0, None]
    assert distinct([], 1) is None


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(1, 4))
def test_distinct_is_a_share(items: list[str], n: int) -> None:
    found = distinct(items, n)
    assert (found is None) == (len(items) < n)
    assert found is None or 0 < found <= 1
    assert found is None or (found == 1) == (
        len({*zip(*(items[k:] for k in range(n)), strict=False)}) == len(items) - n + 1
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nnnn", 3),
        ("ababa", 3),
        ("aba", 0),
        ("abcabc", 3),
        ("xabcabcaby", 5),
        ("aabb", 1),
        ("abcd", 0),
        ("", 0),
        ("a", 0),
    ],
)
def test_longest_repeat_by_hand(text: str, expected: int) -> None:
    assert longest_repeat(list(text)) == expected


@given(st.lists(st.sampled_from("ab"), max_size=14))
def test_longest_repeat_the_slow_way(items: list[str]) -> None:
    """A stretch [a, b) repeats with period p when each item equals that p before it, and b - a >= p."""
    found = [
        b - a
        for p in range(1, len(items))
        for a in range(p, len(items))
        for b in range(a + p, len(items) + 1)
        if all(items[k] == items[k - p] for k in range(a, b))
    ]
    assert longest_repeat(items) == max(found, default=0)
