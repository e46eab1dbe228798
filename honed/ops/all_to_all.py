"""Ranks that hold slices of a row's tokens swap them for the whole row's tokens of some heads, and back.

Ulysses sequence parallelism (Jacobs et al., arXiv:2309.14509): all that a layer computes token by token is computed on
a slice, and attention, which mixes tokens but not heads, on the whole row.

    rank 0   all heads of tokens 0 to t      --->   the first heads of tokens 0 to T
    rank 1   all heads of tokens t to 2t     <---   the last heads of tokens 0 to T

Shapes: S ranks, t tokens of a slice, T = S t tokens of the row; H query heads, K key/value heads, h heads of one rank;
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
    """The whole row's queries, keys and values for this rank's heads; all ranks of the group must ask for theirs.

    Key/value heads that several ranks need are sent to each of them.

    Args:
        qkv: this rank's slice, queries (1, H, t, E), keys and values (1, K, t, E); slices are of one length.
        group: the ranks, in the order of their slices.

    Returns:
        (1, H / S, T, E), and keys and values with the heads that these queries see; in the dtype of `compute_dtype`.

    Raises:
        ModelError: the heads cannot be shared out evenly.
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
    """All heads of this rank's tokens, (1, t, H, E), for this rank's heads of all tokens: `heads_of_row` undone."""
    _, tokens, heads, size = output_1ThE.shape
    ranks = group.size()
    got_SN = _swap(output_1ThE.reshape(ranks, -1), group)
    return got_SN.view(ranks, tokens // ranks, heads, size).transpose(0, 1).reshape(1, -1, ranks * heads, size)


def of_own_heads(value_H: torch.Tensor | None, group: dist.ProcessGroup) -> torch.Tensor | None:
    """This rank's part of a value per head."""
    return None if value_H is None else value_H.view(group.size(), -1)[group.rank()]


def _row(got_SN: torch.Tensor, slice_1HtE: torch.Tensor) -> torch.Tensor:
    """(1, h, T, E) out of what each rank sent."""
    (ranks, _), (_, heads, tokens, size) = got_SN.shape, slice_1HtE.shape
    return got_SN.view(ranks, heads // ranks, tokens, size).transpose(0, 1).reshape(1, -1, ranks * tokens, size)


def _swap(x_SN: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    swapped: torch.Tensor = _Swap.apply(x_SN, group)
    return swapped


class _Swap(torch.autograd.Function):
    """Line s of what is given goes to rank s; line s of the result came from rank s. It is its own transpose."""

    @staticmethod
    def forward(ctx: Any, x_SN: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        got_SN = torch.empty_like(x_SN, memory_format=torch.contiguous_format)
        dist.all_to_all_single(got_SN, x_SN.contiguous(), group=group)
        return got_SN

    @staticmethod
    def backward(ctx: Any, gradient_SN: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _swap(gradient_SN, ctx.group), None
