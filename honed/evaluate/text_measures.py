"""Statistics of an answer's text: its words, their diversity, the longest repetition."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

# Chinese and Japanese do not separate words with spaces: each character counts as a word.
_WORD = re.compile(r"[\u3040-\u9fff\uf900-\ufaff]|[^\W\u3040-\u9fff\uf900-\ufaff]+|[^\w\s]")


def words(text: str) -> list[str]:
    """Runs of letters and digits, punctuation marks one by one, and Chinese and Japanese characters one by one."""
    return _WORD.findall(text)


def distinct(items: Sequence[str], n: int) -> float | None:
    """distinct-n of one text: distinct n-grams divided by all n-grams; None if it has none.

    Source: Li et al., A Diversity-Promoting Objective Function (arXiv:1510.03055). Computed per answer, so that it does
    not fall with the number of answers.
    """
    grams = [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def longest_repeat(items: Sequence[str]) -> int:
    """Number of words in the longest run that repeats what directly precedes it.

        "no no no no"  -> 3      "a b a b a"  -> 3      "a b a"  -> 0

    A phrase counts only if it is repeated in full at least once. Models that were not trained to stop often end in such
    a repetition. O(n^2) for n words.
    """
    ids = np.unique(np.array(items, dtype=object).astype(str), return_inverse=True)[1]
    longest = 0
    for period in range(1, len(ids) // 2 + 1):
        run = _longest_run(ids[period:] == ids[:-period])
        if run >= period:
            longest = max(longest, run)
    return longest


def _longest_run(flags: np.ndarray) -> int:
    """Length of the longest run of True."""
    breaks = np.flatnonzero(~flags)
    return int(np.diff(np.concatenate([[-1], breaks, [len(flags)]])).max()) - 1
