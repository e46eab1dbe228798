"""DataCollatorForLanguageModeling: TRL's collator of that name, which scripts pass. honed's batches need none.

Shapes: B rows, L longest row, T tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from honed.data.read.formats import IGNORE_INDEX
from honed.errors import DataError, RecipeError


@dataclass
class DataCollatorForLanguageModeling:
    """Pads rows of token ids on the right, or concatenates them. Same name and arguments as TRL's class.

    Labels are the row's `labels`. A row without them is trained on all its tokens, or on those that its
    `completion_mask` and `assistant_masks` select (TRL reads these masks up to 1.8 and ignores them since).

    Args:
        pad_token_id: the token that fills short rows.
        completion_only_loss: False ignores `completion_mask`.
        padding_free: concatenates the rows into one, with `position_ids` that start at 0 in each document.
        pad_to_multiple_of: the length of the batch is rounded up to a multiple of this.
        return_position_ids: adds `position_ids` to padded batches as well.
        max_length: must be None; cut rows are counted where they are prepared (`SFTConfig(max_length=...)`).
        return_tensors: only "pt".

    Raises:
        RecipeError: max_length, or another return_tensors.
    """

    pad_token_id: int
    _: KW_ONLY
    completion_only_loss: bool = True
    padding_free: bool = False
    pad_to_multiple_of: int | None = None
    return_position_ids: bool = False
    max_length: int | None = None
    return_tensors: str = "pt"

    def __post_init__(self) -> None:
        if self.max_length is not None:
            raise RecipeError(
                f"DataCollatorForLanguageModeling(max_length={self.max_length}) would cut rows without counting them.",
                fix="set SFTConfig(max_length=...) instead",
            )
        _need_torch(self.return_tensors)

    def __call__(self, features: Sequence[Mapping[str, Any]], return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        """See `torch_call`, which subclasses override. `return_tensors` can only be "pt"."""
        _need_torch(return_tensors)
        return self.torch_call(features)

    def torch_call(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collates rows into a batch.

        Args:
            examples: mappings with `input_ids`; optional `labels`, `completion_mask` and `assistant_masks` of the same
                length, and `seq_lengths`, the lengths of a packed row's documents.

        Returns:
            input_ids, labels and attention_mask int64 (B, L); with padding_free input_ids, labels and position_ids
            int64 (1, T), where the first token of each document has no label.

        Raises:
            DataError: a row without input_ids, or one whose columns differ in length.
        """
        ids = [_column(row, "input_ids") for row in examples]
        labels = [self._labels(row) for row in examples]
        documents = [row.get("seq_lengths", [len(row["input_ids"])]) for row in examples]
        positions = self.get_position_ids_from_packed_seq_lengths(documents)
        if not self.padding_free:
            ones = [torch.ones_like(row) for row in ids]
            batch = self._padded(input_ids=ids, labels=labels, attention_mask=ones)
            return batch | (self._padded(position_ids=positions) if self.return_position_ids else {})
        columns = {"input_ids": ids, "labels": labels, "position_ids": positions}
        batch = self._padded(**{name: [torch.cat(rows)] for name, rows in columns.items()})
        batch["labels"][batch["position_ids"] == 0] = IGNORE_INDEX
        return batch

    @staticmethod
    def get_position_ids_from_packed_seq_lengths(batch_seq_lengths: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Position ids of packed rows: int64, one tensor a row, from 0 in each document of the given lengths."""
        return [torch.cat([torch.arange(length) for length in lengths]) for lengths in batch_seq_lengths]

    def _labels(self, row: Mapping[str, Any]) -> torch.Tensor:
        if "labels" in row:
            return _column(row, "labels")
        labels = _column(row, "input_ids")
        for name in ("completion_mask", "assistant_masks") if self.completion_only_loss else ("assistant_masks",):
            if name in row:
                labels[_column(row, name) == 0] = IGNORE_INDEX
        return labels

    def _padded(self, **columns: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        fills = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX}
        multiple = self.pad_to_multiple_of or 1
        batch = {}
        for name, rows in columns.items():
            width = -(-max(map(len, rows)) // multiple) * multiple
            batch[name] = torch.stack([F.pad(row, (0, width - len(row)), value=fills.get(name, 0)) for row in rows])
        return batch


def _need_torch(return_tensors: str) -> None:
    if return_tensors != "pt":
        raise RecipeError(f"return_tensors={return_tensors!r}: only 'pt' is supported.", fix="leave it out")


def _column(row: Mapping[str, Any], name: str) -> torch.Tensor:
    """A copy of a row's column: int64, shape (L,).

    Raises:
        DataError: the row has no input_ids, or not as many values as these.
    """
    if "input_ids" not in row:
        raise DataError(
            f"A row has no input_ids; its columns are {', '.join(row) or 'none'}.",
            fix="tokenise the rows, or leave data_collator out and let SFTTrainer prepare them",
        )
    values, expected = row[name], len(row["input_ids"])
    if len(values) != expected:
        raise DataError(f"A row has {len(values)} {name} for {expected} input_ids.", fix="give one for each token")
    return torch.tensor(np.asarray(values), dtype=torch.int64)
