"""The LoRA linear layer as one function: base product and low-rank update, forward and backward (arXiv:2106.09685).

    y = x W^T + b + s (d A^T) B^T        d: x after the adapter's dropout

Both passes add the update in place to the base product. Besides the inputs, only t = s d A^T, which has R columns, is
saved for the backward pass; casts are repeated. Frozen weights get no gradient.

Shapes: M rows of any leading shape, I input features, O output features, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from honed.ops.products import compute_dtype, linear


def lora_linear(
    x_MI: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    a_RI: torch.Tensor,
    b_OR: torch.Tensor,
    *,
    scaling: float,
    dropped_MI: torch.Tensor | None = None,
) -> torch.Tensor:
    """The layer's output, shape (..., O), in autocast's dtype or otherwise that of x.

    Args:
        x_MI: the input. Without autocast all tensors have its dtype.
        weight_OI, bias_O: the base layer's; the weight gets no gradient.
        a_RI, b_OR: the adapter's weights.
        scaling: factor of the update.
        dropped_MI: x after the adapter's dropout; None without dropout.
    """
    dtype = compute_dtype(x_MI)
    y_MO: torch.Tensor = _LoraLinear.apply(x_MI, dropped_MI, weight_OI.detach(), bias_O, a_RI, b_OR, scaling, dtype)
    # viewed out here: models may not add in place to a view made inside the autograd function
    return y_MO.view(*x_MI.shape[:-1], y_MO.shape[-1])  # there may be no rows: an expert without tokens


def add_low_rank(
    base_MO: torch.Tensor, x_MI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, *, scaling: float
) -> torch.Tensor:
    """`base + scaling (x A^T) B^T` in the dtype of `base`: only the update, for any base layer.

    Args:
        base_MO: the base layer's output; not changed.
        x_MI: the adapter's input, in any floating dtype.
        a_RI, b_OR: the adapter's weights; the update is computed in their dtype, or autocast's.
        scaling: factor of the update.
    """
    rows_MO = base_MO.reshape(-1, base_MO.shape[-1])
    output_MO: torch.Tensor = _LowRankUpdate.apply(rows_MO, x_MI, a_RI, b_OR, scaling, compute_dtype(a_RI))
    return output_MO.view(base_MO.shape)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them by position
        ctx: Any,
        x_MI: torch.Tensor,
        dropped_MI: torch.Tensor | None,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        rows_MI = _rows(x_MI, dtype)
        low_MI = rows_MI if dropped_MI is None else _rows(dropped_MI, dtype)
        y_MO = linear(rows_MI, weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype))
        t_MR = linear(low_MI, a_RI.to(dtype)).mul_(scaling)
        y_MO.addmm_(t_MR, b_OR.to(dtype).t())
        ctx.save_for_backward(x_MI, dropped_MI, weight_OI, bias_O, a_RI, b_OR, t_MR)
        ctx.scaling, ctx.dtype = scaling, dtype
        return y_MO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_MO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_MI, dropped_MI, weight_OI, bias_O, a_RI, b_OR, t_MR = ctx.saved_tensors
        for_x, for_dropped, _, for_bias = ctx.needs_input_grad[:4]
        low_MI = x_MI if dropped_MI is None else dropped_MI
        dy_MO = dy_MO.to(ctx.dtype)
        u_MR, da_RI, db_OR = _low_rank_gradients(ctx, dy_MO, low_MI, a_RI, b_OR, t_MR, needed=ctx.needs_input_grad[4:6])
        dx_MI = ddropped_MI = dbias_O = None
        if for_x:
            dx_MI = linear(dy_MO, weight_OI.to(ctx.dtype).t())
            if dropped_MI is None:
                dx_MI.addmm_(u_MR, a_RI.to(ctx.dtype))
            dx_MI = dx_MI.view(x_MI.shape).to(x_MI.dtype)
        if for_dropped:
            ddropped_MI = linear(u_MR, a_RI.to(ctx.dtype).t()).view(x_MI.shape).to(dropped_MI.dtype)
        if for_bias:
            dbias_O = dy_MO.sum(0).to(bias_O.dtype)
        return dx_MI, ddropped_MI, None, dbias_O, da_RI, db_OR, None, None


class _LowRankUpdate(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them by position
        ctx: Any,
        base_MO: torch.Tensor,
        x_MI: torch.Tensor,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        t_MR = linear(_rows(x_MI, dtype), a_RI.to(dtype)).mul_(scaling)
        ctx.save_for_backward(x_MI, a_RI, b_OR, t_MR)
        ctx.scaling, ctx.dtype = scaling, dtype
        update_MO = linear(t_MR, b_OR.to(dtype))
        if base_MO.dtype == torch.promote_types(base_MO.dtype, dtype):
            return update_MO.add_(base_MO) if base_MO.dtype == dtype else base_MO + update_MO
        return update_MO.add_(base_MO).to(base_MO.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_MO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_MI, a_RI, b_OR, t_MR = ctx.saved_tensors
        rows_MO = dy_MO.to(ctx.dtype)
        u_MR, da_RI, db_OR = _low_rank_gradients(ctx, rows_MO, x_MI, a_RI, b_OR, t_MR, needed=ctx.needs_input_grad[2:4])
        dx_MI = None
        if ctx.needs_input_grad[1]:
            dx_MI = linear(u_MR, a_RI.to(ctx.dtype).t()).view(x_MI.shape).to(x_MI.dtype)
        return dy_MO if ctx.needs_input_grad[0] else None, dx_MI, da_RI, db_OR, None, None


def _low_rank_gradients(  # noqa: PLR0917 - the order of the saved tensors
    ctx: Any,
    dy_MO: torch.Tensor,
    low_MI: torch.Tensor,
    a_RI: torch.Tensor,
    b_OR: torch.Tensor,
    t_MR: torch.Tensor,
    *,
    needed: tuple[bool, ...],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """u = s dy B, from which the gradient of the adapter's input follows, and the gradients of A and B."""
    u_MR = linear(dy_MO, b_OR.to(ctx.dtype).t()).mul_(ctx.scaling)
    da_RI = linear(u_MR.t(), _rows(low_MI, ctx.dtype).t()).to(a_RI.dtype) if needed[0] else None
    db_OR = linear(t_MR.t(), dy_MO.t()).t().to(b_OR.dtype) if needed[1] else None
    return u_MR, da_RI, db_OR


def _rows(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1]).to(dtype)
