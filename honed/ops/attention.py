"""Attention over flat rows: every document attends to itself and to the prefix it shares, and nothing is padded.

Registered with transformers as "honed", so unmodified models use it after `model.set_attn_implementation("honed")`.
Batches without document boundaries (generation, padded rows) take transformers' own SDPA path.

On CUDA in half precision one variable-length kernel computes the whole row (`attention_varlen.py`). Elsewhere each
document takes one call (`attention_tiles.py`), and neighbours of equal length share a call. Padding documents of
similar length into one call is slower on a CPU unless all are tiny (benchmarks/attention.py). Rows are split with one
`split`, because the gradient of each separate slice would be as long as the row.

Shapes: B batch (1 for flat rows), H query heads, K key/value heads, T tokens, E head size, N segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from honed.errors import ModelError
from honed.ops.all_to_all import heads_of_row, of_own_heads, tokens_of_slice
from honed.ops.attention_layout import Layout, Remembered, Run, layout_of_bounds, layout_of_positions
from honed.ops.attention_tiles import Rule, attend, attend_masked
from honed.ops.attention_varlen import Kernel, Qkv, attend_varlen, choose_kernel, machine, works
from honed.ops.products import compute_dtype

NAME = "honed"

_layouts = Remembered()


def register() -> str:
    """Registers the implementation with transformers and returns its name. May be called repeatedly."""
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
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    shared_prefixes: torch.Tensor | None = None,
    sequence_group: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document.

    Args:
        attention_mask: must be None when boundaries are given.
        sliding_window, softcap, s_aux: see `Rule`.
        cu_seq_lens_q: int32 (N + 1,), the start of each segment and the end of the last; absent for ordinary batches.
        max_length_q: tokens in the longest segment; saves reading the boundaries from the device.
        shared_prefixes: int32 (2, N), the parent of each segment (-1 for none), and how many tokens of its parent's
            path and text it sees; see `attention_layout`.
        sequence_group: the ranks (a `ProcessGroup`) that each hold a slice of the row's tokens; `cu_seq_lens_q` and
            `shared_prefixes` then describe the whole row, and all ranks must take part. See `all_to_all`.

    Returns:
        The output, shape (B, T, H, E), and None for the attention weights.

    Raises:
        ModelError: prefixes are shared and the layer has dropout, or the heads cannot be divided among the ranks.
        NotImplementedError: the layer is not causal.
    """
    if cu_seq_lens_q is not None and not _is_causal(module, kwargs):
        raise NotImplementedError("the model's attention looks ahead")
    qkv = (query_BHTE, key_BKTE, value_BKTE)
    if sequence_group is not None:
        qkv, s_aux = heads_of_row(qkv, sequence_group), of_own_heads(s_aux, sequence_group)
    rule = Rule(scaling=scaling, dropout=dropout, window=sliding_window, softcap=softcap, sinks_H=s_aux)
    output_BTHE = _attend(
        module,
        qkv,
        attention_mask,
        rule,
        cu_seq_lens_q=cu_seq_lens_q,
        max_length_q=max_length_q,
        shared_prefixes=shared_prefixes,
        **kwargs,
    )
    return output_BTHE if sequence_group is None else tokens_of_slice(output_BTHE, sequence_group), None


def _attend(
    module: torch.nn.Module,
    qkv: Qkv,
    mask: torch.Tensor | None,
    rule: Rule,
    *,
    cu_seq_lens_q: torch.Tensor | None,
    max_length_q: int | None,
    shared_prefixes: torch.Tensor | None,
    **kwargs: Any,
) -> torch.Tensor:
    """The output on one rank, shape (B, T, H, E)."""
    query, _, value = qkv
    kernel = _kernel(query, value, rule)
    if kernel and cu_seq_lens_q is not None and shared_prefixes is None and max_length_q is not None:
        bounds, longest = cu_seq_lens_q.to(torch.int32), max_length_q
        return attend_varlen(kernel, qkv, rule, bounds=(bounds, bounds), longest=(longest, longest))
    layout = _layout(query, mask, cu_seq_lens_q, shared_prefixes, kwargs.get("position_ids"))
    if layout is None:
        return _ordinary(module, qkv, mask, rule, kwargs)
    if layout.shares and rule.dropout:
        raise ModelError("documents cannot share a prefix's dropout", fix="set dropout to 0 or share_prefixes=False")
    return _whole_row(kernel, layout, qkv, rule) if kernel else _by_document(layout, qkv, rule)


def remember(batch: Mapping[str, Any]) -> None:
    """Makes attention use the batch's own `layout` instead of reading the boundaries from the device.

    Call it after the batch has been moved to its device. Boundaries that are later replaced or modified are read again.
    """
    layout, bounds_N, tree_2N = (batch.get(name) for name in ("layout", "cu_seq_lens_q", "shared_prefixes"))
    if layout is not None and bounds_N is not None:
        here = layout if layout.device == bounds_N.device else layout.to(bounds_N.device)
        _layouts.put(here, bounds_N, *([] if tree_2N is None else [tree_2N]))


def document_mask(
    *args: Any, q_length: int, kv_length: int, attention_mask: torch.Tensor | None = None, **kwargs: Any
) -> torch.Tensor | None:
    """No mask where boundaries suffice; transformers' SDPA mask for padded batches and cached decoding."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(*args, q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **kwargs)


def _by_document(layout: Layout, qkv: Qkv, rule: Rule) -> torch.Tensor:
    sizes = [run.tokens for run in layout.runs]
    queries, keys, values = (x.split(sizes, dim=2) for x in qkv)
    outputs = [
        attend(_folded(queries[n], run), _with_path(keys, n, run), _with_path(values, n, run), rule).flatten(0, 1)
        for n, run in enumerate(layout.runs)
    ]
    return torch.cat(outputs)[None]


def _folded(x_1HTE: torch.Tensor, run: Run) -> torch.Tensor:
    """A view of shape (count, H, length, E), with neighbours of equal length as a batch."""
    return x_1HTE if run.count == 1 else x_1HTE[0].unflatten(1, (run.count, run.length)).transpose(0, 1)


def _with_path(parts: tuple[torch.Tensor, ...], number: int, run: Run) -> torch.Tensor:
    own = _folded(parts[number], run)
    if not run.path:
        return own
    return torch.cat([*(parts[n][:, :, :tokens].expand(run.count, -1, -1, -1) for n, tokens in run.path), own], dim=2)


def _kernel(query: torch.Tensor, value: torch.Tensor, rule: Rule) -> Kernel | None:
    on = machine(query.device)
    if on.capability is None:
        return None
    dtype, size = compute_dtype(query), query.shape[-1]
    kernel = choose_kernel(on, rule, dtype=dtype, head_size=size, value_size=value.shape[-1])
    return kernel if kernel and works(kernel, query.device, rule, dtype=dtype, head_size=size) else None


def _whole_row(kernel: Kernel, layout: Layout, qkv: Qkv, rule: Rule) -> torch.Tensor:
    q, k, v = qkv
    bounds = (layout.bounds, layout.bounds)
    if layout.shares:
        places, bounds_k = layout.keys
        k, v, bounds = k.index_select(2, places), v.index_select(2, places), (layout.bounds, bounds_k)
    return attend_varlen(kernel, (q, k, v), rule, bounds=bounds, longest=(layout.longest, layout.most_keys))


def _ordinary(
    module: torch.nn.Module, qkv: Qkv, mask: torch.Tensor | None, rule: Rule, kwargs: dict[str, Any]
) -> torch.Tensor:
    """Padded rows and decoding with a cache: (B, T, H, E)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    query, key, value = qkv
    queries = query.shape[2]
    whole = mask is None and queries > 1 and _is_causal(module, kwargs)
    if whole and (not rule.plain or rule.window is not None):  # further keys are unused cache slots
        return attend(query, key[:, :, :queries], value[:, :, :queries], rule).contiguous()
    if not rule.plain:
        return attend_masked(query, key, value, mask, rule).transpose(1, 2).contiguous()
    options = {"dropout": rule.dropout, "scaling": rule.scaling, **kwargs}
    output: torch.Tensor = sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    return output


def _is_causal(module: torch.nn.Module, kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("is_causal", getattr(module, "is_causal", True)))


def _layout(
    query: torch.Tensor,
    mask: torch.Tensor | None,
    bounds: torch.Tensor | None,
    tree: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> Layout | None:
    """The segments of a flat row; None for an ordinary batch."""
    if bounds is not None:
        return _layouts.get(layout_of_bounds, bounds, *([] if tree is None else [tree]))
    flat = position_ids is not None and mask is None and query.shape[0] == 1 and query.shape[2] > 1
    if not flat or position_ids is None or position_ids.numel() != query.shape[2]:
        return None
    # a flat row made by another library, described by its positions only
    layout = _layouts.get(layout_of_positions, position_ids)
    return layout if layout.segments > 1 else None
