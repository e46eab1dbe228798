"""Splits a micro-batch that does not fit into memory in two; the repeated step has the same sum of losses.

A step's loss does not depend on how its documents are divided into micro-batches (`honed.loss.objective`). Only dropout
and noise are drawn anew, and the experts' load-balancing loss is a mean per micro-batch.

Shapes: B rows, T tokens of a flat batch, N documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch

from honed.data.batch.collate import Batch
from honed.data.read.formats import IGNORE_INDEX
from honed.ops.attention_layout import Layout

_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "out of memory")
_OF_TOKENS = ("input_ids", "labels", "loss_weights", "position_ids")
_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "layout")
_FLAT = {*_OF_TOKENS, *_BOUNDS, "num_tokens", "num_targets"}
_PADDED = {"input_ids", "labels", "loss_weights", "attention_mask", "num_tokens", "num_targets"}


class Splits:
    """Keeps track of the micro-batches that did not fit.

    Attributes:
        count: micro-batches that did not fit since the last log.
        limit: tokens of the smallest one that did not fit; batches of this size or more are split without a try.
    """

    def __init__(self) -> None:
        self.count = 0
        self.limit: int | None = None

    def fitting(self, micro_batches: list[Batch]) -> list[Batch]:
        """Splits micro-batches until they are below the limit, as far as possible."""
        if self.limit is None:
            return list(micro_batches)
        fits: list[Batch] = []
        for batch in micro_batches:
            parts = halves(batch) if size_of(batch) >= self.limit else None
            fits += [batch] if parts is None else self.fitting(list(parts))
        return fits

    def add(self, batch: Batch) -> bool:
        """Records a micro-batch that did not fit; returns whether it is the first one."""
        first, size = self.limit is None, size_of(batch)
        self.count, self.limit = self.count + 1, size if self.limit is None else min(size, self.limit)
        return first


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on an accelerator or on the host."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


def size_of(batch: Mapping[str, torch.Tensor]) -> int:
    """The number of positions that the model computes, including padding."""
    return batch["input_ids"].numel()


def can_be_cut(batch: Mapping[str, object]) -> bool:
    """Whether this is one of honed's flat or padded batches, without shared prefixes."""
    return ("cu_seq_lens_q" in batch and set(batch) <= _FLAT) or ("attention_mask" in batch and set(batch) <= _PADDED)


def halves(batch: Batch) -> tuple[Batch, Batch] | None:
    """Splits a batch between documents into two views of about equal size in tokens; None if that is impossible."""
    if not can_be_cut(batch):
        return None
    if "cu_seq_lens_q" not in batch:
        rows = len(batch["input_ids"])
        return None if rows < 2 else (_rows(batch, slice(0, rows // 2)), _rows(batch, slice(rows // 2, rows)))
    bounds = [bound for bound in batch["cu_seq_lens_q"].tolist() if bound <= batch["num_tokens"]]  # without padding
    if len(bounds) < 3:
        return None
    middle = min(range(1, len(bounds) - 1), key=lambda at: abs(2 * bounds[at] - bounds[-1]))
    return _documents(batch, bounds[: middle + 1]), _documents(batch, bounds[middle:])


def _documents(batch: Batch, bounds: list[int]) -> Batch:
    """The documents of a flat batch between these boundaries."""
    span = slice(bounds[0], bounds[-1])
    starts = torch.tensor(bounds, dtype=torch.int32, device=batch["cu_seq_lens_q"].device) - bounds[0]
    longest = max(end - start for start, end in pairwise(bounds))
    cut = {name: batch[name][:, span] for name in _OF_TOKENS}
    ends = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
    layout = Layout([end - start for start, end in pairwise(bounds)], device=starts.device)
    counts = {"num_tokens": bounds[-1] - bounds[0], "num_targets": _targets(cut["labels"])}
    return {**cut, **ends, **counts, "layout": layout}


def _rows(batch: Batch, span: slice) -> Batch:
    cut = {name: value[span] for name, value in batch.items() if isinstance(value, torch.Tensor)}
    return {**cut, "num_tokens": int(cut["attention_mask"].sum()), "num_targets": _targets(cut["labels"])}


def _targets(labels: torch.Tensor) -> int:
    return int((labels[..., 1:] != IGNORE_INDEX).sum())
