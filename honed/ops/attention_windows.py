"""Sliding windows that a model puts into its masks but does not pass to the attention function.

Attention without masks (`attention.py`, like flash attention) knows a layer's sliding window only from the keyword that
the layer passes. Some models in transformers put the window into their masks only.

Shapes: B batch, H query heads, K key/value heads, L tokens, E head size.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "honed_windows"


@torch.no_grad()
def untold_windows(model: Any) -> list[int]:
    """Windows, in tokens, that occur in masks but that no layer passes on; found by a forward pass over two tokens.

    Args:
        model: a transformers model in evaluation mode; its attention implementation is replaced and restored.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    asked: set[int | None] = set()
    told: set[int | None] = set()

    def mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> None:
        asked.add(local_size)

    def attention(
        module: Any, query_BHLE: Any, key: Any, value_BKLE: Any, *args: Any, sliding_window: int | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        told.add(sliding_window)
        batch, heads, tokens, _size = query_BHLE.shape
        return query_BHLE.new_zeros(batch, tokens, heads, value_BKLE.shape[-1]), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        ids_1L = torch.zeros(1, 2, dtype=torch.int64, device=model.get_input_embeddings().weight.device)
        model(input_ids=ids_1L, use_cache=False)
    finally:
        model.set_attn_implementation(before)
    return sorted(window for window in asked - told if window)  # 0 also means none
