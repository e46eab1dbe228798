"""All-to-all between two layouts: all heads of a slice of the tokens, and some heads of all tokens.

Ulysses sequence parallelism (Jacobs et al., arXiv:2309.14509): token-wise operations run on each rank's slice of the
row. Attention mixes tokens but not heads, so it runs on the whole row for a subset of the heads.

    rank 0   all heads of tokens 0 to t      --->   the first heads of tokens 0 to T
    rank 1   all heads of tokens t to 2t     <---   the last heads of tokens 0 to T

Shapes: S ranks, t tokens per slice, T = S t tokens in the row; H query heads, K key/value heads, h heads per rank;
E head size, N values sent to one rank.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
import torch.distributed as dist

from honed.errors import ModelError
from honed.ops.attention_varlen import Qkv
from honed.ops.products import compute_dtype


def heads_of_row(qkv: Qkv, group: dist.ProcessGroup) -> Qkv:
    """The whole row's queries, keys and values for this rank's heads. A collective: every rank must call it.

    Key/value heads that several ranks need are sent to each of them.

    Args:
        qkv: this rank's slice: queries (1, H, t, E), keys and values (1, K, t, E). All slices have the same length.
        group: the ranks, in the order of their slices.

    Returns:
        Queries (1, H / S, T, E), and the keys and values of the heads they attend to; in the dtype of `compute_dtype`.

    Raises:
        ModelError: the heads cannot be divided evenly among the ranks.
    """
    query, key, value = qkv
    ranks, heads, dtype = group.size(), query.shape[1], compute_dtype(query)
    if heads % ranks:
        raise ModelError(
            f"The model has {heads} attention heads, which {ranks} processes cannot share evenly.",
            fix="set sequence_parallel_size to a divisor of the number of heads",
        )
    copies = ranks // gcd(ranks, key.shape[1])
    parts = [query, *(x if copies == 1 else x.repeat_interleave(copies, dim=1) for x in (key, value))]
    sent = [x.to(dtype).reshape(ranks, -1) for x in parts]
    got = _swap(torch.cat(sent, dim=1), group).split([x.shape[1] for x in sent], dim=1)
    q, k, v = (_row(x_SN, like) for x_SN, like in zip(got, parts, strict=True))
    return q, k, v


def tokens_of_slice(output_1ThE: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """All heads of this rank's tokens, (1, t, H, E), from this rank's heads of all tokens: undoes `heads_of_row`."""
    _, tokens, heads, size = output_1ThE.shape
    ranks = group.size()
    got_SN = _swap(output_1ThE.reshape(ranks, -1), group)
    return got_SN.view(ranks, tokens // ranks, heads, size).transpose(0, 1).reshape(1, -1, ranks * heads, size)


def of_own_heads(value_H: torch.Tensor | None, group: dist.ProcessGroup) -> torch.Tensor | None:
    """This rank's part of a tensor with one value per head."""
    return None if value_H is None else value_H.view(group.size(), -1)[group.rank()]


def _row(got_SN: torch.Tensor, slice_1HtE: torch.Tensor) -> torch.Tensor:
    """Assembles (1, h, T, E) from what each rank sent."""
    (ranks, _), (_, heads, tokens, size) = got_SN.shape, slice_1HtE.shape
    return got_SN.view(ranks, heads // ranks, tokens, size).transpose(0, 1).reshape(1, -1, ranks * tokens, size)


def _swap(x_SN: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    swapped: torch.Tensor = _Swap.apply(x_SN, group)
    return swapped


class _Swap(torch.autograd.Function):
    """Sends row s of the input to rank s; row s of the result came from rank s. The operation is its own transpose."""

    @staticmethod
    def forward(ctx: Any, x_SN: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        got_SN = torch.empty_like(x_SN, memory_format=torch.contiguous_format)
        dist.all_to_all_single(got_SN, x_SN.contiguous(), group=group)
        return got_SN

    @staticmethod
    def backward(ctx: Any, gradient_SN: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _swap(gradient_SN, ctx.group), None
