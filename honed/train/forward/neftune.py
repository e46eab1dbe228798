"""NEFTune: uniform noise on the embeddings during training (Jain et al., arXiv:2310.05914).

The paper scales the noise of a sequence of L tokens to alpha / sqrt(L * D). transformers' hook uses the width of the
batch for L, so the noise depends on padding and on how many documents share a row. Here L is each document's length, as
in the paper's code.

Shapes: B rows, L tokens, D hidden size, N documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def noisy_embeddings(embeddings: nn.Module, alpha: float | None, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Adds noise to the embeddings of the batch `inputs` within the block, in training mode and with alpha only."""
    if not alpha:
        yield
        return
    lengths_BL = token_lengths(inputs)

    def add_noise(module: nn.Module, _: Any, h_BLD: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return h_BLD
        dims_BL = lengths_BL.to(h_BLD.device, non_blocking=True) * h_BLD.shape[-1]
        scale_BL1 = (alpha / dims_BL.sqrt()).to(h_BLD.dtype)[..., None]
        return h_BLD + torch.empty_like(h_BLD).uniform_(-1.0, 1.0) * scale_BL1

    handle = embeddings.register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()


def token_lengths(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Returns the length of each position's document, without padding; float32 (B, L) or (B, 1)."""
    if (bounds_N := inputs.get("cu_seq_lens_q")) is not None:
        lengths_N = bounds_N.diff()
        total = inputs["input_ids"].shape[-1]
        return torch.repeat_interleave(lengths_N, lengths_N, output_size=total)[None].float()
    mask_BL = inputs.get("attention_mask")
    if mask_BL is not None and mask_BL.dim() == 2:
        return mask_BL.sum(-1, keepdim=True).clamp_min(1).float()
    ids_BL = inputs["input_ids"]
    return torch.full((ids_BL.shape[0], 1), ids_BL.shape[-1], dtype=torch.float32)
