"""Turns rows into a flat (no padding) or a padded Batch. The only file of `data/` that needs torch.

Shapes: B rows, L longest row, T tokens of the batch, N documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from honed.data.batch.prefix import shared_row
from honed.data.batch.table import PackedRow
from honed.data.read.formats import IGNORE_INDEX
from honed.ops.attention_layout import Layout

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatCollator:
    """Concatenates all documents of the batch into one long row with boundaries in `cu_seq_lens`, without padding.

        input_ids      [[a a a a b b c c c]]
        position_ids   [[0 1 2 3 0 1 0 1 2]]
        cu_seq_lens_q   [0       4   6     9]

    The boundaries have the names that transformers passes to flash attention.

    Attributes:
        share_prefixes: the row holds common prefixes of documents only once, and boundaries are those of segments (see
            `prefix`). For models that use honed's attention.
        multiple_of: the row is padded to a multiple of this length with documents that no other token attends to.
        pad_token_id: the token of the padding.
    """

    share_prefixes: bool = False
    multiple_of: int = 1
    pad_token_id: int = 0

    def __call__(self, rows: Sequence[PackedRow]) -> Batch:
        """Collates rows into a batch.

        Returns:
            input_ids, labels, position_ids int64 (1, T); loss_weights float32 (1, T); cu_seq_lens int32 (N + 1,).
            Two integers, which save a device synchronisation: `num_tokens`, without padding, and `num_targets`, the
            positions with a label to their right. `layout`: the same boundaries for honed's attention. With shared
            prefixes also shared_prefixes, int32 (2, N): the parent of each segment (-1 for none), and the number of
            tokens that come before it.
        """
        tree = shared_row(rows) if self.share_prefixes else None
        rows = rows if tree is None else [tree]
        padding = self._padding(rows)
        segments = sum(len(row.lengths) for row in rows) + len(padding.lengths)
        structure = np.array([[-1], [0]], dtype=np.int32).repeat(segments, axis=1)
        if tree is not None:
            structure[:, : len(tree.parents)] = tree.parents, tree.starts
        batch = self._flat([*rows, padding], structure[1])
        batch["num_tokens"] -= len(padding.input_ids)
        lengths = [length for row in (*rows, padding) for length in row.lengths]
        batch["layout"] = Layout(lengths, *structure.tolist())
        return batch if tree is None else {**batch, "shared_prefixes": torch.from_numpy(structure)}

    def _padding(self, rows: Sequence[PackedRow]) -> PackedRow:
        """Returns the padding, in documents no longer than the others: attention's cost is quadratic in length."""
        missing = -sum(len(row.input_ids) for row in rows) % self.multiple_of
        longest = max(length for row in rows for length in row.lengths)
        return PackedRow(
            input_ids=np.full(missing, self.pad_token_id),
            weights=np.zeros(missing, dtype=np.float32),
            lengths=tuple(min(longest, missing - start) for start in range(0, missing, longest)),
        )

    @staticmethod
    def _flat(rows: Sequence[PackedRow], starts: np.ndarray) -> Batch:
        lengths = np.array([length for row in rows for length in row.lengths], dtype=np.int64)
        ends = np.cumsum(lengths)
        ids = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
        weights = np.concatenate([row.weights for row in rows])
        positions = np.arange(len(ids)) - np.repeat(ends - lengths - starts, lengths)
        bounds = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))
        longest = int(lengths.max())
        labels = _labels(ids, weights)
        return {
            "input_ids": torch.from_numpy(ids)[None],
            "labels": torch.from_numpy(labels)[None],
            "loss_weights": torch.from_numpy(weights)[None],
            "position_ids": torch.from_numpy(positions)[None],
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": longest,
            "max_length_k": longest,
            "num_tokens": len(ids),
            "num_targets": _num_targets(labels),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedCollator:
    """One document per row, padded on the right; for models whose attention does not support document boundaries.

    Padding is masked by length, not by token id, so a pad token equal to EOS is harmless.

    Attributes:
        pad_token_id: the token that fills short rows.
        multiple_of: rows are padded to a multiple of this length.
    """

    pad_token_id: int
    multiple_of: int = 1

    def __call__(self, rows: Sequence[PackedRow]) -> Batch:
        """Returns input_ids, labels, attention_mask int64 (B, L); loss_weights float32 (B, L); num_tokens, num_targets.

        Raises:
            ValueError: a row holds several documents, which padded rows cannot isolate.
        """
        if any(len(row.lengths) > 1 for row in rows):
            raise ValueError("packed rows need flat batches; a padded row would let documents see each other")
        longest = max(len(row.input_ids) for row in rows)
        width = -(-longest // self.multiple_of) * self.multiple_of
        ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        weights = np.zeros((len(rows), width), dtype=np.float32)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            length = len(row.input_ids)
            ids[number, :length], weights[number, :length], mask[number, :length] = row.input_ids, row.weights, 1
        labels = _labels(ids, weights)
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "loss_weights": torch.from_numpy(weights),
            "attention_mask": torch.from_numpy(mask),
            "num_tokens": int(mask.sum()),
            "num_targets": _num_targets(labels),
        }


def _labels(ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the ids of trained tokens and -100 for others; not shifted (the objective shifts)."""
    return np.where(weights > 0, ids, IGNORE_INDEX)


def _num_targets(labels: np.ndarray) -> int:
    """Returns the number of labels that are predicted, which need a position to their left."""
    return int((labels[..., 1:] != IGNORE_INDEX).sum())
