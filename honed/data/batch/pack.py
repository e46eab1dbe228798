"""Packing: decides which documents share a row, from their lengths only."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np


def pack_best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Best-fit decreasing: each document, longest first, goes to the row where it leaves the least space.

        capacity 8, lengths [5, 3, 6, 2]   ->   |0 0 0 0 0|1 1 1|   |2 2 2 2 2 2|3 3|
                                                 5 + 3 tokens        6 + 2 tokens

    O(n log n). Source: Johnson, Near-optimal bin packing algorithms (1973); Ding et al., arXiv:2404.10830.

    Args:
        lengths: tokens per document, each at least 1 and at most `capacity`.
        capacity: tokens per row.

    Returns:
        Rows of document indices; every index is in exactly one row. Indices ascend within a row; rows are ordered by
        their first document, so the result does not depend on how ties were broken.

    Raises:
        ValueError: a document is longer than a row, or empty.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and (lengths.max() > capacity or lengths.min() < 1):
        raise ValueError(f"lengths must be in [1, {capacity}], found {lengths.min()} to {lengths.max()}")
    rows_by_space: dict[int, list[list[int]]] = {}
    spaces: list[int] = []  # the keys of rows_by_space, ascending
    longest_first = np.argsort(-lengths, kind="stable")
    for document, length in zip(longest_first.tolist(), lengths[longest_first].tolist(), strict=True):
        row, space = _take_tightest(rows_by_space, spaces, length, capacity)
        row.append(document)
        _put_back(rows_by_space, spaces, row, space - length)
    rows = [sorted(row) for same in rows_by_space.values() for row in same]
    return sorted(rows)


def pack_wrapped(starts: np.ndarray, capacity: int) -> tuple[np.ndarray, list[list[int]]]:
    """Concatenates documents and cuts wherever a row is full: all rows but the last are full, documents may be split.

        capacity 4, lengths [5, 2]   ->   |0 0 0 0|0 1 1|   as documents [0 0 0 0], [0], [1 1]

    Args:
        starts: int64 (documents + 1,), the start of each document and the end of the last.
        capacity: tokens per row.

    Returns:
        The starts of the parts of documents (like `starts`), and the rows of part indices.
    """
    cuts = np.union1d(starts, np.arange(0, starts[-1], capacity))
    rows: list[list[int]] = [[] for _ in range(-(-int(starts[-1]) // capacity))]
    for part, row in enumerate((cuts[:-1] // capacity).tolist()):
        rows[row].append(part)
    return cuts, rows


def one_by_one(count: int) -> list[list[int]]:
    """Every document in its own row."""
    return [[document] for document in range(count)]


def fill_rate(lengths: Sequence[int] | np.ndarray, rows: Sequence[Sequence[int]], capacity: int) -> float:
    """Fraction of the rows' capacity that holds tokens, 0 to 1."""
    return float(np.sum(lengths)) / (len(rows) * capacity) if rows else 0.0


def _take_tightest(
    rows_by_space: dict[int, list[list[int]]], spaces: list[int], length: int, capacity: int
) -> tuple[list[int], int]:
    """Removes and returns the row with the least space >= length, or returns a new row."""
    at = bisect_left(spaces, length)
    if at == len(spaces):
        return [], capacity
    space = spaces[at]
    row = rows_by_space[space].pop()
    if not rows_by_space[space]:
        del rows_by_space[space], spaces[at]
    return row, space


def _put_back(rows_by_space: dict[int, list[list[int]]], spaces: list[int], row: list[int], space: int) -> None:
    if space not in rows_by_space:
        rows_by_space[space] = []
        insort(spaces, space)
    rows_by_space[space].append(row)
