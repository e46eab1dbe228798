"""Causal attention within one run of tokens, tiled over the queries where one call would compute many masked keys.

Exact for grouped heads, sliding windows, soft-capped scores (Gemma 2, arXiv:2408.00118) and attention sinks (gpt-oss),
forward and backward, on any device. Except inside SDPA's `math` kernel, no (queries x keys) tensor of the whole run is
materialised.

Shapes: B batch, H query heads, K key/value heads, G = H / K, Q queries, S keys, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# Measured on one CPU core with 9 heads of size 64 (benchmarks/attention.py): smaller tiles need more calls, and in
# larger ones more than half of the computed scores are masked.
TILE_QUERIES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Options of a layer's causal softmax attention.

    Attributes:
        scaling: factor of the scores; None for 1 / sqrt(E).
        dropout: dropout probability, 0 outside training.
        window: how many tokens each token sees, itself included; None for all preceding ones.
        softcap: scores become softcap * tanh(score / softcap).
        sinks_H: an extra logit per head in the softmax, without a value (attention sink).
    """

    scaling: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None
    sinks_H: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether SDPA supports it."""
        return self.softcap is None and self.sinks_H is None


def attend(q_BHQE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Causal attention of the last Q of S tokens to all S; shape (B, Q, H, E)."""
    queries, keys = q_BHQE.shape[2], k_BKSE.shape[2]
    if rule.plain and queries == keys and (rule.window is None or rule.window >= keys):
        return _sdpa(q_BHQE, k_BKSE, v_BKSE, None, rule).transpose(1, 2)
    size = max(TILE_QUERIES, (rule.window or 0) // 4)
    tiles = q_BHQE.split(size, dim=2)
    outputs = []
    for number, tile in enumerate(tiles):
        start = keys - queries + number * size  # position of the tile's first query among the keys
        first, end = max(0, start + 1 - (rule.window or keys)), start + tile.shape[2]
        mask_QS = _band(tile.shape[2], end - first, rule.window, tile.device)
        compute = _sdpa if rule.plain else _recomputed if len(tiles) > 1 else attend_masked
        outputs.append(compute(tile, k_BKSE[:, :, first:end], v_BKSE[:, :, first:end], mask_QS, rule).transpose(1, 2))
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


def attend_masked(
    q_BHQE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, mask: torch.Tensor | None, rule: Rule
) -> torch.Tensor:
    """Attention in plain operations, with soft-capping and sinks; softmax in float32 (float64 stays float64).

    Args:
        mask: bool, True where a query sees a key; (Q, S) or (B, 1, Q, S). None for no mask.

    Returns:
        (B, H, Q, E).
    """
    (B, H, Q, E), K = q_BHQE.shape, k_BKSE.shape[1]
    scores = q_BHQE.reshape(B, K, -1, E) @ k_BKSE.transpose(2, 3)  # the G query heads of a key head in one product
    scores = scores.view(B, H, Q, -1) * (E**-0.5 if rule.scaling is None else rule.scaling)
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if rule.sinks_H is not None:
        sinks = rule.sinks_H.to(scores.dtype).view(1, H, 1, 1).expand(B, H, Q, 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    weights = F.dropout(weights.to(v_BKSE.dtype), rule.dropout)
    return (weights.reshape(B, K, -1, weights.shape[-1]) @ v_BKSE).view(B, H, Q, -1)


def _recomputed(*args: Any) -> torch.Tensor:
    """`attend_masked` with its weights recomputed in the backward pass, so that a long document stores none of them."""
    output: torch.Tensor = checkpoint(attend_masked, *args, use_reentrant=False)
    return output


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, rule: Rule) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and q.device.type == "cuda":
        # What gets here on CUDA is not for SDPA's flash kernel: it has a mask, is float32, or the GPU is too old. Of
        # the other kernels only `math` takes grouped heads, and it stores all (queries x keys) weights.
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=rule.dropout,
        is_causal=mask is None,
        scale=rule.scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _band(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """bool (Q, S), True where a query sees a key; the last query is aligned with the last key."""
    ages = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (ages >= 0) if window is None else (ages >= 0) & (ages < window)
