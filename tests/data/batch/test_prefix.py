"""Prefix trees, held against the documents that they were made from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.data.batch.pack import pack_best_fit
from honed.data.batch.prefix import MIN_SHARED, Segment, find_tree, pack_shared, shared_row
from honed.data.batch.table import PackedRow, TokenTable


@st.composite
def families(draw: st.DrawFn) -> list[tuple[list[int], list[float]]]:
    """Documents over two tokens, many of which continue an earlier one; weights of every kind."""
    documents: list[tuple[list[int], list[float]]] = []
    for number in range(draw(st.integers(1, 9))):
        ids: list[int] = []
        if number and draw(st.booleans()):
            earlier = documents[draw(st.integers(0, number - 1))][0]
            ids = earlier[: draw(st.integers(0, len(earlier)))]
        ids = ids + draw(st.lists(st.integers(0, 1), min_size=0 if ids else 1, max_size=8))
        weights = draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0]), min_size=len(ids), max_size=len(ids)))
        documents.append((ids, [0.0, *weights[1:]]))
    return documents


def arrays(documents: list[tuple[list[int], list[float]]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    ids, weights = zip(*documents, strict=True)
    return [np.array(i, dtype=np.int32) for i in ids], [np.array(w, dtype=np.float32) for w in weights]


def row_of(*documents: tuple[list[int], list[float]]) -> PackedRow:
    ids, weights = arrays(list(documents))
    return PackedRow(input_ids=np.concatenate(ids), weights=np.concatenate(weights), lengths=tuple(len(i) for i in ids))


def weighted_predictions(pairs: list[tuple[list[int], list[float]]]) -> dict[tuple[int, ...], float]:
    """What is to be predicted from what, and how much it weighs: all that a loss depends on."""
    found: dict[tuple[int, ...], float] = {}
    for ids, weights in pairs:
        for n, weight in enumerate(weights):
            if weight:
                found[tuple(ids[: n + 1])] = found.get(tuple(ids[: n + 1]), 0.0) + weight
    return found


def paths(tree: list[Segment], ids: list[np.ndarray]) -> list[list[int]]:
    """The tokens that the last token of each segment sees, put together as attention does."""
    found: list[list[int]] = []
    for segment in tree:
        before = found[segment.parent][: segment.start] if segment.parent >= 0 else []
        found.append(before + ids[segment.documents[0]][segment.start : segment.end].tolist())
    return found


@settings(deadline=None, derandomize=True, max_examples=200)
@given(documents=families(), min_shared=st.integers(2, 5))
def test_a_tree_says_what_its_documents_say(documents: list[tuple[list[int], list[float]]], min_shared: int) -> None:
    ids, weights = arrays(documents)
    tree = find_tree(ids, weights, min_shared=min_shared)
    found = paths(tree, ids)
    for number, segment in enumerate(tree):
        assert segment.parent < number and len(segment) > 0
        assert (segment.start == 0) if segment.parent < 0 else (segment.start >= tree[segment.parent].end - 1)
        assert all(ids[d][: segment.end].tolist() == found[number] for d in segment.documents)
    assert {tuple(path) for path in found} >= {tuple(i.tolist()) for i in ids}  # each document is one path
    assert sum(map(len, tree)) <= sum(map(len, ids))
    row = shared_row([row_of(*documents)], min_shared=min_shared)
    if row is None:
        assert len(tree) == len(ids)
        return
    assert row.parents == tuple(s.parent for s in tree) and row.starts == tuple(s.start for s in tree)
    own = np.split(row.weights, np.cumsum(row.lengths)[:-1])
    pairs = [([*path], [0.0] * (len(path) - len(w)) + w.tolist()) for path, w in zip(found, own, strict=True)]
    assert weighted_predictions(pairs) == weighted_predictions(documents)
    assert all(w[0] == 0 for w in own)  # nothing in its segment predicts it


def test_what_all_share_stands_there_once() -> None:
    system, question = list(range(100, 120)), list(range(200, 230))
    answers = [(system + question + [n, n], [0.0] * 50 + [1.0, 1.0]) for n in range(4)]
    other = ([*system, 5, 6, 7], [0.0] * 22 + [1.0])
    row = shared_row([row_of(*answers[:2]), row_of(other, *answers[2:])])
    assert row is not None
    assert row.lengths == (20, 3, 30, 3, 3, 3, 3)  # system, the other, question, four answers behind a copied token
    assert row.parents == (-1, 0, 0, 2, 2, 2, 2)
    assert row.starts == (0, 20, 20, 49, 49, 49, 49)


def test_documents_that_share_too_little_are_left_as_they_are() -> None:
    start = list(range(MIN_SHARED - 1))
    assert shared_row([row_of(([*start, 90], [0.0] * MIN_SHARED), ([*start, 91], [0.0] * MIN_SHARED))]) is None


def test_equal_documents_become_one_that_weighs_as_much() -> None:
    document = (list(range(MIN_SHARED)), [0.0] + [0.5] * (MIN_SHARED - 1))
    row = shared_row([row_of(document, document, document)])
    assert row is not None and row.lengths == (MIN_SHARED,)
    assert row.weights.tolist() == [0.0] + [1.5] * (MIN_SHARED - 1)


def test_a_long_chain_of_documents_needs_no_deep_stack() -> None:
    ids = [np.arange(2 * n, dtype=np.int32) for n in range(1, 3000)]
    tree = find_tree(ids, [np.zeros(len(i), dtype=np.float32) for i in ids], min_shared=2)
    assert len(tree) == len(ids) and sum(map(len, tree)) == len(ids[-1])


def table_of(documents: list[tuple[list[int], list[float]]]) -> TokenTable:
    ids, weights = arrays(documents)
    return TokenTable.of(np.concatenate(ids), np.concatenate(weights), np.cumsum([0, *map(len, ids)], dtype=np.int64))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(documents=families(), min_shared=st.integers(2, 5), room=st.integers(0, 30))
def test_packing_loses_nothing_and_keeps_the_capacity(
    documents: list[tuple[list[int], list[float]]], min_shared: int, room: int
) -> None:
    table = table_of(documents)
    capacity = int(table.lengths.max()) + room
    rows, tokens = pack_shared(table, capacity, min_shared=min_shared)
    assert sorted(d for row in rows for d in row) == list(range(len(documents)))
    sizes = []
    for row in rows:
        tree = shared_row([table.row(row)], min_shared=min_shared)
        sizes.append(sum(tree.lengths) if tree else int(table.lengths[row].sum()))
        assert sizes[-1] <= capacity
    assert tokens >= sum(sizes)


@pytest.mark.parametrize(("capacity", "branches"), [(60, [2] * 6), (100, [6, 6]), (200, [12])])
def test_a_tree_larger_than_a_row_is_parted_among_its_branches(capacity: int, branches: list[int]) -> None:
    system = list(range(100, 140))
    documents = [(system + [n] * 10, [0.0] * 41 + [1.0] * 9) for n in range(12)]
    rows, tokens = pack_shared(table_of(documents), capacity)
    assert list(map(len, rows)) == branches
    assert tokens == 120 + 40 * len(rows)


def test_nothing_in_common_packs_as_best_fit_does() -> None:
    documents = [([n] * length, [0.0] * length) for n, length in enumerate([5, 3, 6, 2, 7, 4, 4, 1])]
    table = table_of(documents)
    rows, tokens = pack_shared(table, 8)
    assert rows == pack_best_fit(table.lengths, 8) and tokens == 32
