"""Documents with common prefixes as a tree, so that shared tokens are computed only once.

    documents             tree                        row
    s q 1 1 1             s q -+- 1 1 1               | s q | 1 1 1 | 2 2 | r 3 |
    s q 2 2                    +- 2 2                   0 1   2 3 4   2 3   1 2      positions
    s r 3                 s -- r 3 (below s q)        segments 1 and 2 see 2 tokens of segment 0, segment 3 sees 1

A system prompt in all rows, several answers to one question, the views of one conversation: all are such trees. Every
token sees the same tokens as in its own document, so the loss is the same. A trained token that several documents
share carries the sum of their weights.

Nothing inside a segment predicts its first token. Where documents diverge at a trained token, their segments therefore
begin one token earlier, with a copy (of weight 0) of the last shared token.

Shapes: T tokens of a document or segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import numpy as np

from honed.data.batch.pack import pack_best_fit
from honed.data.batch.table import PackedRow, TokenTable

# Sharing fewer tokens costs more (attention over two key ranges) than it saves.
MIN_SHARED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens [start, end) of documents that are equal up to `end`.

    Attributes:
        parent: the index of the segment whose path and tokens provide the first `start` tokens; -1 if `start` is 0.
        documents: indices of the documents that contain it.
    """

    start: int
    end: int
    parent: int
    documents: tuple[int, ...]

    def __len__(self) -> int:
        return self.end - self.start


def find_tree(
    ids: Sequence[np.ndarray], weights: Sequence[np.ndarray], *, min_shared: int = MIN_SHARED
) -> list[Segment]:
    """Builds the tree of segments, parents before their children.

    Args:
        ids: token ids of each document, at least one.
        weights: loss weights, aligned with `ids`; 0 for a document's first token.
        min_shared: minimum number of tokens, beyond those already shared, for documents to share another segment.

    Returns:
        Segments in which each document is one path. In total, they have at most as many tokens as the documents.
    """
    order = sorted(range(len(ids)), key=lambda document: ids[document].astype(">u4").tobytes())
    alike = np.array([_common(ids[a], ids[b]) for a, b in pairwise(order)], dtype=np.int64)
    segments: list[Segment] = []
    open_ranges = [(0, len(order), -1)]  # documents order[first:stop] below a segment
    while open_ranges:
        first, stop, parent = open_ranges.pop()
        shared = segments[parent].end if parent >= 0 else 0
        while first < stop and len(ids[order[first]]) == shared:  # ends where its parent ends
            first += 1
        if first == stop:
            continue
        end = int(alike[first : stop - 1].min()) if stop - first > 1 else len(ids[order[first]])
        if stop - first == 1 or end - shared >= min_shared:
            documents = tuple(order[first:stop])
            start = shared - any(weights[d][shared] > 0 for d in documents) if parent >= 0 else 0
            segments.append(Segment(start=start, end=end, parent=parent, documents=documents))
            parent = len(segments) - 1
        if stop - first > 1:
            cuts = first + 1 + np.flatnonzero(alike[first : stop - 1] == end)
            parts = pairwise([first, *cuts.tolist(), stop])
            open_ranges += [(a, b, parent) for a, b in reversed(list(parts))]
    return segments


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRow(PackedRow):
    """A row whose `lengths` are those of segments.

    Attributes:
        parents: the parent of each segment, -1 for none.
        starts: the number of tokens of its parent's path and text that each segment continues.
    """

    parents: tuple[int, ...]
    starts: tuple[int, ...]


def shared_row(rows: Sequence[PackedRow], *, min_shared: int = MIN_SHARED) -> TreeRow | None:
    """Returns all documents of these rows as one tree; None if they share nothing."""
    ids, weights = _documents(rows)
    segments = find_tree(ids, weights, min_shared=min_shared)
    if all(segment.parent < 0 for segment in segments) and len(segments) == len(ids):
        return None
    return TreeRow(
        input_ids=np.concatenate([ids[s.documents[0]][s.start : s.end] for s in segments]),
        weights=np.concatenate([_weights(s, weights) for s in segments]),
        lengths=tuple(map(len, segments)),
        parents=tuple(s.parent for s in segments),
        starts=tuple(s.start for s in segments),
    )


def pack_shared(table: TokenTable, capacity: int, *, min_shared: int = MIN_SHARED) -> tuple[list[list[int]], int]:
    """Best-fit packing that puts documents with common prefixes into one row, which holds each prefix once.

    A tree larger than a row is split between its branches, and each part repeats the prefix.

    Args:
        table: the documents, none longer than `capacity`.
        capacity: tokens per row, counted in segments.

    Returns:
        Rows of document indices, like those of `pack_best_fit`, and the total number of tokens in them.
    """
    ids, weights = (np.split(flat, table.starts[1:-1]) for flat in (table.input_ids, table.weights))
    segments = find_tree(ids, weights, min_shared=min_shared)
    below: list[list[_Unit]] = [[] for _ in [*segments, None]]  # the last (index -1): those without a parent
    inside = _tokens_above(segments)
    for number in reversed(range(len(segments))):  # children before their parents
        segment, units = segments[number], below[number]
        further = {d for unit in units for d in unit.documents}
        if ending := tuple(d for d in segment.documents if d not in further):
            units.append(_Unit(tokens=0, documents=ending))
        for unit in _fitted(units, capacity - inside[number] - len(segment)):
            below[segment.parent].append(replace(unit, tokens=unit.tokens + len(segment)))
    rows = _fitted(below[-1], capacity)
    return sorted(sorted(row.documents) for row in rows), sum(row.tokens for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """Documents that stay in one row, and the tokens that they add to the segments above them in the tree."""

    tokens: int
    documents: tuple[int, ...]


def _fitted(units: list[_Unit], capacity: int) -> list[_Unit]:
    """Combines the units. One that is too large stays separate: only the copies along its path make it too large."""
    fitting = [unit for unit in units if unit.tokens <= capacity]
    groups = pack_best_fit([max(1, unit.tokens) for unit in fitting], max(1, capacity))
    return [unit for unit in units if unit.tokens > capacity] + [
        _Unit(
            tokens=sum(fitting[n].tokens for n in group),
            documents=tuple(chain.from_iterable(fitting[n].documents for n in group)),
        )
        for group in groups
    ]


def _tokens_above(segments: Sequence[Segment]) -> list[int]:
    """Returns the tokens of all segments above each segment, which a row also needs."""
    above: list[int] = []
    for segment in segments:
        parent = segment.parent
        above.append(above[parent] + len(segments[parent]) if parent >= 0 else 0)
    return above


def _weights(segment: Segment, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the sum over the documents, float32 (T,); 0 for the first token, which is unpredicted or the parent's."""
    total = np.stack([weights[d][segment.start : segment.end] for d in segment.documents]).sum(axis=0)
    total[0] = 0.0
    return total


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Returns the length of the common prefix of two documents."""
    shorter = min(len(a), len(b))
    differ = a[:shorter] != b[:shorter]
    first = int(differ.argmax()) if shorter else 0
    return first if shorter and differ[first] else shorter


def _documents(rows: Sequence[PackedRow]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    ids, weights = [], []
    for row in rows:
        cuts = np.cumsum(row.lengths)[:-1]
        ids += np.split(row.input_ids, cuts)
        weights += np.split(row.weights, cuts)
    return ids, weights
