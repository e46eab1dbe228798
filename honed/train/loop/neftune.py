"""NEFTune: noise on the embeddings while training (arXiv:2310.05914).

Shapes: B rows, L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from honed.data.batch.collate import Batch


@contextmanager
def neftune(embeddings: nn.Module, batch: Batch, alpha: float | None) -> Iterator[None]:
    """Within this block, each token's embedding gets uniform noise of up to alpha / sqrt(L D).

    L is the length of the token's own document, so a document gets the same noise alone, padded or in a shared row.
    The hook is gone after the block: there is none while the model is evaluated.

    Args:
        embeddings: the model's input embeddings.
        batch: on the embeddings' device.
        alpha: None or 0 for no noise.
    """
    if not alpha:
        yield
        return
    lengths_BL = document_lengths(batch)

    def add_noise(module: nn.Module, inputs: Any, h_BLD: torch.Tensor) -> torch.Tensor:
        largest_BL1 = alpha * (lengths_BL * h_BLD.shape[-1]).rsqrt()[..., None]
        return h_BLD + torch.empty_like(h_BLD).uniform_(-1, 1) * largest_BL1.to(h_BLD.dtype)

    hook = embeddings.register_forward_hook(add_noise)
    try:
        yield
    finally:
        hook.remove()


def document_lengths(batch: Batch) -> torch.Tensor:
    """For each position of the batch the length of its document, int64, of shape (B, L) or (B, 1)."""
    if "attention_mask" in batch:
        return torch.as_tensor(batch["attention_mask"].sum(-1, keepdim=True))
    lengths = batch["cu_seq_lens_q"].diff().long()
    total = batch["input_ids"].shape[-1]  # else repeat_interleave would ask the device for the sum
    return torch.as_tensor(lengths.repeat_interleave(lengths, output_size=total)[None])
