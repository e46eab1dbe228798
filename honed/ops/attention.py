"""Attention over flat rows: every document attends to itself only, and no dense T x T mask is built.

Registered with transformers under the name "honed", so unmodified models use it through
`model.set_attn_implementation("honed")`. Batches without document boundaries (generation, padded rows) take
transformers' own SDPA path.

Shapes: B batch (1 for flat rows), H query heads, K key/value heads, T tokens, E head size, N documents.
"""

from __future__ import annotations

import weakref
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

NAME = "honed"


def register() -> str:
    """Makes the implementation known to transformers; safe to call often. Returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, document_mask)
    return NAME


def document_attention(
    module: torch.nn.Module,
    query_BHTE: torch.Tensor,
    key_BKTE: torch.Tensor,
    value_BKTE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document.

    Args:
        module: the attention layer that calls.
        attention_mask: must be None where boundaries are given.
        sliding_window: a token sees this many tokens including itself; None for all before it.
        cu_seq_lens_q: int32 (N + 1,), where documents start and end; absent for ordinary batches.

    Returns:
        Output of shape (B, T, H, E), and no weights.

    Raises:
        NotImplementedError: the layer caps its scores or has attention sinks, which SDPA cannot do.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise NotImplementedError("soft-capped scores and attention sinks need the model's own attention")
    documents = _documents(cu_seq_lens_q, kwargs.get("position_ids"), query_BHTE, attention_mask)
    options: dict[str, Any] = {"scaling": scaling, "dropout": dropout, "window": sliding_window}
    if documents is None:
        return _plain(module, query_BHTE, key_BKTE, value_BKTE, attention_mask, **options, kwargs=kwargs)
    outputs = [
        _one_document(query_BHTE[:, :, a:b], key_BKTE[:, :, a:b], value_BKTE[:, :, a:b], **options)
        for a, b in documents
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def document_mask(
    *args: Any, q_length: int, kv_length: int, attention_mask: torch.Tensor | None = None, **kwargs: Any
) -> torch.Tensor | None:
    """No mask where boundaries say it all; transformers' SDPA mask for padded batches and cached decoding."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(*args, q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **kwargs)


def _one_document(
    q_BHTE: torch.Tensor,
    k_BKTE: torch.Tensor,
    v_BKTE: torch.Tensor,
    *,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    length = q_BHTE.shape[2]
    mask = _window_mask(length, window, q_BHTE.device) if window is not None and window < length else None
    return F.scaled_dot_product_attention(
        q_BHTE,
        k_BKTE,
        v_BKTE,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=q_BHTE.shape[1] != k_BKTE.shape[1],
    )


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """bool (length, length): True where the query may look."""
    ages = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (ages >= 0) & (ages < window)


def _plain(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float | None,
    dropout: float,
    window: int | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    length = query.shape[2]
    if mask is None and window is not None and window < length == key.shape[2]:
        mask = _window_mask(length, window, query.device)
    output, _ = sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    return output, None


def _documents(
    bounds: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    query: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[tuple[int, int], ...] | None:
    """Start and end of each document, or None for an ordinary batch."""
    if bounds is not None:
        return _known(bounds, _spans_of_bounds)
    flat = position_ids is not None and mask is None and query.shape[0] == 1 and query.shape[2] > 1
    if flat and position_ids is not None and position_ids.shape[-1] == query.shape[2]:
        # someone else's flat batch: a position that does not continue the one before starts a document
        documents = _known(position_ids, _spans_of_positions)
        return documents if len(documents) > 1 else None
    return None


def _spans_of_bounds(bounds_N: torch.Tensor) -> tuple[tuple[int, int], ...]:
    ends = bounds_N.tolist()
    return tuple(pairwise(ends))


def _spans_of_positions(positions_1T: torch.Tensor) -> tuple[tuple[int, int], ...]:
    row = positions_1T.reshape(-1)
    starts = (torch.nonzero(row[1:] != row[:-1] + 1).reshape(-1) + 1).tolist()
    ends = [0, *starts, len(row)]
    return tuple(pairwise(ends))


# Every layer of a step asks for the same tensor's spans, and reading them waits for the device: remember the last.
_last: tuple[weakref.ref[torch.Tensor], tuple[tuple[int, int], ...]] | None = None


def _known(tensor: torch.Tensor, spans_of: Any) -> tuple[tuple[int, int], ...]:
    global _last  # noqa: PLW0603 - one slot, keyed by the tensor itself
    if _last is not None and _last[0]() is tensor:
        return _last[1]
    spans: tuple[tuple[int, int], ...] = spans_of(tensor)
    _last = (weakref.ref(tensor), spans)
    return spans
