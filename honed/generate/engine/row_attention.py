"""Attention of one step: prompts attend to themselves, running rows to their slots, each over its own length only.

Registered with transformers as "honed_rows", without a mask function, so models build no masks. Rows of similar length
in neighbouring slots share one call, in which the missing entries of shorter rows are masked.

Shapes: H query heads, K key/value heads, G = H / K, T tokens, E head size, N rows in a group, L cache entries it reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from honed.generate.engine.cache import Step
from honed.ops.attention import document_attention

NAME = "honed_rows"
NOT_DONE = ("position_bias", "alibi", "head_mask")  # arguments of some models that are not supported here
# An additional call costs about as much as reading this many entries; measured on two CPU cores.
CALL_ENTRIES = {"cpu": 96}
CALL_ENTRIES_ELSEWHERE = 1 << 20  # each call launches kernels: as few calls as possible


def register() -> str:
    """Registers the implementation with transformers and returns its name. May be called repeatedly."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, row_attention)
    return NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Running rows of one call: rows `first` to `last` of the step, in slots from `slot` on, entries `low` to `high`.

    `seen` is bool (N, 1, 1, L), True at entries that a row sees; None if all rows see all entries.
    """

    first: int
    last: int
    slot: int
    low: int
    high: int
    seen: torch.Tensor | None


def row_attention(
    module: torch.nn.Module,
    query_1HTE: torch.Tensor,
    key_1KTE: torch.Tensor,
    value_1KTE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    generation_step: Step | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a step's tokens.

    Args:
        module: the calling attention layer; its `layer_idx` selects the layer of the cache.
        sliding_window: how many tokens each token sees, itself included; None for all preceding ones.
        softcap: scores become softcap * tanh(score / softcap).
        s_aux: an extra logit per query head in the softmax, without a value (attention sink).
        generation_step: as passed to the model's forward.

    Returns:
        The output, shape (1, T, H, E), and None for the attention weights.

    Raises:
        NotImplementedError: the model did not pass the step on, or its attention needs something unsupported.
    """
    step, odd = generation_step, [name for name in NOT_DONE if kwargs.get(name) is not None]
    if step is None or odd or dropout:
        raise NotImplementedError(f"its attention needs {', '.join(odd) or 'to be given the step of generation'}")
    attend = _Attend(scaling=scaling, softcap=softcap, sinks_H=s_aux)
    outputs = []
    if step.bounds_N is not None:
        q, k, v = (x[:, :, : step.prompt_tokens] for x in (query_1HTE, key_1KTE, value_1KTE))
        if attend.is_plain:
            options: dict[str, Any] = {
                "scaling": scaling,
                "sliding_window": sliding_window,
                "cu_seq_lens_q": step.bounds_N,
                "max_length_q": max(end - start for start, end in pairwise(step.bounds)),
            }
            outputs.append(document_attention(module, q, k, v, None, **options)[0])
        else:
            outputs.append(_prompts((q, k, v), step, sliding_window, attend))
    if step.slots:
        layer = step.cache.layers[module.layer_idx]
        outputs.append(_running(query_1HTE[0, :, step.prompt_tokens :], layer, step, sliding_window, attend))
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attend:
    """Attention over a block: SDPA if it supports the layer's options, otherwise plain operations."""

    scaling: float | None
    softcap: float | None
    sinks_H: torch.Tensor | None

    @property
    def is_plain(self) -> bool:
        return self.softcap is None and self.sinks_H is None

    def __call__(
        self, q_NKGE: torch.Tensor, k_NKLE: torch.Tensor, v_NKLE: torch.Tensor, seen: torch.Tensor | None
    ) -> torch.Tensor:
        """The output, shape (N, K, G, E); a key/value head's queries take the place of the sequence dimension."""
        if self.is_plain:
            return F.scaled_dot_product_attention(q_NKGE, k_NKLE, v_NKLE, attn_mask=seen, scale=self.scaling)
        scores_NKGL = q_NKGE @ k_NKLE.transpose(-1, -2) * (self.scaling or q_NKGE.shape[-1] ** -0.5)
        if self.softcap is not None:
            scores_NKGL = torch.tanh(scores_NKGL / self.softcap) * self.softcap
        if seen is not None:
            scores_NKGL = scores_NKGL.masked_fill(~seen, float("-inf"))
        return self._weights(scores_NKGL).to(v_NKLE.dtype) @ v_NKLE

    def _weights(self, scores_NKGL: torch.Tensor) -> torch.Tensor:
        exact = torch.float64 if scores_NKGL.dtype == torch.float64 else torch.float32
        if self.sinks_H is None:
            return torch.softmax(scores_NKGL, -1, dtype=exact)
        n, k, rows, _ = scores_NKGL.shape
        # query rows are G heads, or for a prompt G heads of many tokens each
        heads = self.sinks_H.shape[0] // k
        sinks_NKG1 = self.sinks_H.reshape(1, k, heads, 1).repeat_interleave(rows // heads, dim=2).expand(n, -1, -1, -1)
        both = torch.cat([scores_NKGL, sinks_NKG1.to(scores_NKGL.dtype)], dim=-1)
        return torch.softmax(both, -1, dtype=exact)[..., :-1]


def _prompts(whole: tuple[torch.Tensor, ...], step: Step, window: int | None, attend: _Attend) -> torch.Tensor:
    """Prompts one by one, with a group's heads stacked along the token dimension: (1, T, H, E)."""
    outputs = []
    for start, end in pairwise(step.bounds):
        q_1HNE, k_1KNE, v_1KNE = (x[:, :, start:end] for x in whole)
        heads, length, groups = q_1HNE.shape[1], end - start, q_1HNE.shape[1] // k_1KNE.shape[1]
        ages = torch.arange(length, device=q_1HNE.device)[:, None] - torch.arange(length, device=q_1HNE.device)
        seen = _seen(ages, window).repeat(groups, 1)
        q_1KRE = q_1HNE.reshape(1, heads // groups, groups * length, -1)
        outputs.append(attend(q_1KRE, k_1KNE, v_1KNE, seen).reshape(1, heads, length, -1).transpose(1, 2))
    return torch.cat(outputs, dim=1)


def _running(q_HTE: torch.Tensor, layer: Any, step: Step, window: int | None, attend: _Attend) -> torch.Tensor:
    """One token of each running row: (1, T, H, E)."""
    heads, count, _ = q_HTE.shape
    kv_heads = layer.keys.shape[1]
    q_TKGE = q_HTE.transpose(0, 1).reshape(count, kv_heads, heads // kv_heads, -1)
    if (window, "groups") not in step.kept:
        step.kept[window, "groups"] = groups_of(step, window, q_HTE.device)
    outputs = []
    for group in step.kept[window, "groups"]:
        rows = slice(group.slot, group.slot + group.last - group.first)
        k_NKLE, v_NKLE = (states[rows, :, group.low : group.high] for states in (layer.keys, layer.values))
        outputs.append(attend(q_TKGE[group.first : group.last], k_NKLE, v_NKLE, group.seen))
    return torch.cat(outputs).reshape(1, count, heads, -1)


def groups_of(step: Step, window: int | None, device: torch.device) -> list[Group]:
    """The groups of running rows for a layer with this window."""
    call = CALL_ENTRIES.get(device.type, CALL_ENTRIES_ELSEWHERE)
    groups = []
    for first, last in partition(step.slots, step.lengths, call):
        lengths = step.lengths[first:last]
        low = 0 if window is None else max(0, min(lengths) - window)
        high = max(lengths)
        seen = None
        if min(lengths) < high or (window is not None and high - low > window):
            newest = torch.tensor(lengths, device=device)[:, None] - 1
            seen = _seen(newest - torch.arange(low, high, device=device), window)[:, None, None]
        slot = step.slots[first]
        groups.append(Group(first=first, last=last, slot=slot, low=low, high=high, seen=seen))
    return groups


def partition(slots: tuple[int, ...], lengths: tuple[int, ...], call: int) -> list[tuple[int, int]]:
    """Splits rows into runs of adjacent slots, minimising the cost of calls and entries read; (first, last) of each.

    A run of n rows reads n times its maximum length. Dynamic programming over the position of the last cut.
    """
    best, cut = [0.0], [0]
    for end in range(1, len(slots) + 1):
        cost, at, longest = float("inf"), end - 1, 0
        for start in range(end - 1, -1, -1):
            if slots[end - 1] - slots[start] != end - 1 - start:
                break  # there is a free slot between
            longest = max(longest, lengths[start])
            if (whole := best[start] + call + longest * (end - start)) < cost:
                cost, at = whole, start
        best.append(cost)
        cut.append(at)
    runs, end = [], len(slots)
    while end:
        runs.append((cut[end], end))
        end = cut[end]
    return runs[::-1]


def _seen(ages: torch.Tensor, window: int | None) -> torch.Tensor:
    """True where an entry of this age (0 is the token itself) is seen."""
    return ages >= 0 if window is None else (ages >= 0) & (ages < window)
