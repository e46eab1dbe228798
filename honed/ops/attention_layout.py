"""Which tokens of a flat row attend to which: documents side by side, or branches that share a prefix.

    row        | p p p p | a a | b b b |      cu_seq_lens      0 4 6 9
    segments        0       1      2          shared_prefixes  [[-1, 0, 0],     the parent of each, -1 for none
                                                                [ 0, 4, 3]]     tokens of the parent's path it sees
    keys of 0: p p p p    keys of 1: p p p p a a    keys of 2: p p p b b b

A segment without a parent is a separate document. The path of a segment is what its parent sees, followed by the
parent's own tokens. Attention is causal along the path and the segment.

Shapes: T tokens, S keys of all segments, N segments.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, groupby, pairwise
from typing import NamedTuple

import torch


class Part(NamedTuple):
    """The first `tokens` tokens of run number `run`."""

    run: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Segments that attention computes in one call: one segment, or neighbours of equal length with the same path.

    Attributes:
        count: number of segments.
        length: tokens per segment.
        path: what the segments see before their own tokens, in order.
    """

    count: int
    length: int
    path: tuple[Part, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of all its segments."""
        return self.count * self.length


class Layout:
    """The segments of a row, computed once per batch and used by every layer.

    The collator knows the segments and puts the layout into the batch; data loaders pin and move it like a tensor.

    Args:
        lengths: tokens of each segment, in row order.
        parents: each segment's parent in the tree, -1 for none; parents come before their children.
        seen: how many tokens of its parent's path and text each segment sees.
        device: the row's device.

    Attributes:
        runs: the segments, grouped into calls.
        segments: the number of segments.
        shares: whether any segment sees another one.
        longest: tokens in the longest segment.
        most_keys: the largest number of keys that a segment sees.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        parents: Sequence[int] = (),
        seen: Sequence[int] = (),
        *,
        device: torch.device | None = None,
    ) -> None:
        self.runs = _runs(lengths, parents or [-1] * len(lengths), seen or [0] * len(lengths))
        self.segments = len(lengths)
        self.shares = any(run.path for run in self.runs)
        self.longest = max(lengths)
        self.most_keys = max(run.length + sum(part.tokens for part in run.path) for run in self.runs)
        self._ends = list(accumulate(lengths))
        self.device = device or torch.device("cpu")

    def to(self, device: torch.device, non_blocking: bool = False) -> Layout:
        """A copy whose tensors for the kernels are on this device."""
        moved = copy(self)
        moved._replace_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        moved.device = device
        return moved

    def pin_memory(self) -> Layout:
        """A copy whose tensors are in pinned memory."""
        pinned = copy(self)
        pinned._replace_tensors(lambda tensor: tensor.pin_memory())
        return pinned

    def _replace_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.shares:  # otherwise kernels need only the batch's own boundaries
            self.bounds, self.keys = change(self.bounds), (change(self.keys[0]), change(self.keys[1]))

    @cached_property
    def bounds(self) -> torch.Tensor:
        """int32 (N + 1,): the start of each segment and the end of the last."""
        return torch.tensor([0, *self._ends], dtype=torch.int32, device=self.device)

    @cached_property
    def keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For kernels that need the keys of each segment to be contiguous in memory.

        Returns:
            The position of each key in the row, int64 (S,), and the bounds of each segment's keys, int32 (N + 1,).
        """
        starts = [0, *accumulate(run.tokens for run in self.runs)]
        stretches = [
            [range(starts[part.run], starts[part.run] + part.tokens) for part in run.path]
            + [range(start + n * run.length, start + (n + 1) * run.length)]
            for start, run in zip(starts, self.runs, strict=False)
            for n in range(run.count)
        ]
        ends = accumulate(sum(map(len, stretch)) for stretch in stretches)
        places = torch.tensor(list(chain.from_iterable(chain.from_iterable(stretches))), device=self.device)
        return places, torch.tensor([0, *ends], dtype=torch.int32, device=self.device)


def layout_of_bounds(bounds_N: torch.Tensor, tree_2N: torch.Tensor | None = None) -> Layout:
    """The layout given by `cu_seq_lens` and, for shared prefixes, `shared_prefixes`. Synchronises with the device."""
    ends = bounds_N.tolist()
    lengths = [end - start for start, end in pairwise(ends)]
    return Layout(lengths, *([] if tree_2N is None else tree_2N.tolist()), device=bounds_N.device)


def layout_of_positions(positions_1T: torch.Tensor) -> Layout:
    """The layout given by position ids: a document starts wherever a position does not continue the previous one."""
    row = positions_1T.reshape(-1)
    starts = (torch.nonzero(row[1:] != row[:-1] + 1).reshape(-1) + 1).tolist()
    lengths = [end - start for start, end in zip([0, *starts], [*starts, len(row)], strict=True)]
    return Layout(lengths, device=row.device)


class Remembered:
    """Caches the last layout made from tensors: every layer of a step needs it, and reading tensors waits for the
    device. The key is the tensors' identity and version, so an in-place change is noticed."""

    def __init__(self) -> None:
        self._of: tuple[tuple[weakref.ref[torch.Tensor], int], ...] = ()
        self._value: Layout | None = None

    def get(self, make: Callable[..., Layout], *tensors: torch.Tensor) -> Layout:
        """`make(*tensors)`, cached."""
        known = len(self._of) == len(tensors) and all(
            ref() is tensor and version == _version(tensor)
            for (ref, version), tensor in zip(self._of, tensors, strict=True)
        )
        if self._value is None or not known:
            self.put(make(*tensors), *tensors)
        assert self._value is not None
        return self._value

    def put(self, value: Layout, *tensors: torch.Tensor) -> None:
        """Stores the value for these tensors without reading them."""
        self._value = value
        self._of = tuple((weakref.ref(tensor), _version(tensor)) for tensor in tensors)


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _runs(lengths: Sequence[int], parents: Sequence[int], seen: Sequence[int]) -> tuple[Run, ...]:
    has_children = set(parents)
    runs: list[Run] = []
    paths: dict[int, tuple[Part, ...]] = {}  # per segment: what a child may see, its own tokens last

    def kind(segment: int) -> tuple[int, ...]:
        alone = segment if segment in has_children else -1
        return lengths[segment], alone, parents[segment], seen[segment]

    for (length, *_), group in groupby(range(len(lengths)), key=kind):
        segments = list(group)
        first, parent = segments[0], parents[segments[0]]
        path = _first_tokens(paths[parent], seen[first]) if parent >= 0 else ()
        paths[first] = (*path, Part(len(runs), length))
        runs.append(Run(count=len(segments), length=length, path=path))
    return tuple(runs)


def _first_tokens(path: tuple[Part, ...], tokens: int) -> tuple[Part, ...]:
    kept = []
    for run, length in path:
        if tokens > 0:
            kept.append(Part(run, min(length, tokens)))
        tokens -= length
    if tokens > 0:
        raise ValueError(f"a segment sees {tokens} tokens more than come before it")
    return tuple(kept)
