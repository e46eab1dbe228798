"""The gradient of an embedding that is also the LM head's weight, summed in one buffer.

The head's gradient is a full matrix; the embedding's has one row per token of the batch. torch turns these rows into a
second full matrix, mostly zeros, and adds the two: 233 MB more for a vocabulary of 151,936 and a hidden size of 384.
Here the embedding passes its weight on to the head as a second output. Its backward then receives the head's gradient
and adds the rows to it in place.

Shapes: B rows, L tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from honed.loss.head import ScoringHead


@contextmanager
def one_gradient(embedding: nn.Module, head: ScoringHead | None) -> Iterator[bool]:
    """Within the block, an embedding that shares the head's weight passes it on to the head; yields whether it does.

    Only for plain embeddings in float32 or float64: half precision would lose small rows in the sum, and DeepSpeed
    frees weights with their module. The embedding stays the same object; only its class changes.
    """
    fits = head is not None and type(embedding) is nn.Embedding and _is_plain(embedding)
    if not fits:
        yield False
        return
    embedding.__class__ = TiedEmbedding
    embedding.__dict__["head"] = head  # not registered as a submodule
    try:
        yield True
    finally:
        del embedding.__dict__["head"]
        embedding.__class__ = nn.Embedding


def _is_plain(embedding: nn.Embedding) -> bool:
    return (
        embedding.weight.dtype in {torch.float32, torch.float64}
        and not hasattr(embedding.weight, "ds_id")
        and embedding.max_norm is None
        and not embedding.scale_grad_by_freq
        and not embedding.sparse
    )


class TiedEmbedding(nn.Embedding):
    """An embedding that passes its weight on to the head, so that the head's gradient flows back through it."""

    head: ScoringHead

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """The tokens' embeddings, shape (B, L, D)."""
        tied = self.weight is self.head.weight and self.weight.requires_grad and torch.is_grad_enabled()
        if not tied or not self.head.is_scoring:
            return super().forward(ids_BL)
        embedded_BLD, self.head.tied_weight_VD = _Embed.apply(self.weight, ids_BL, self.padding_idx)
        return embedded_BLD


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight_VD: torch.Tensor, ids_BL: torch.Tensor, padding_idx: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ids_BL)
        ctx.shape, ctx.padding_idx = weight_VD.shape, padding_idx
        return nn.functional.embedding(ids_BL, weight_VD), weight_VD

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_BLD: torch.Tensor | None, dweight_VD: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, None, None]:
        (ids_BL,) = ctx.saved_tensors
        if d_BLD is None:
            return dweight_VD, None, None
        if dweight_VD is None:  # the head was not used, or used the weight of another call of the embedding
            dweight_VD = d_BLD.new_zeros(ctx.shape)
        if ctx.padding_idx is not None:
            d_BLD = d_BLD.masked_fill((ids_BL == ctx.padding_idx)[..., None], 0)
        # in place: nothing else holds this gradient
        dweight_VD.index_put_((ids_BL,), d_BLD.to(dweight_VD.dtype), accumulate=True)
        return dweight_VD, None, None
