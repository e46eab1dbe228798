"""The kernel of `cross_entropy_triton`, in its own file because Triton reads its source and its globals."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def score_row(  # noqa: PLR0917 - a kernel's arguments go by position
    logits_ptr,
    stride,
    targets_ptr,
    loss_ptr,
    nll_ptr,
    entropy_ptr,
    correct_ptr,
    V,
    smoothing,
    softcap,
    scale,
    CAPPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    ENTROPY: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program scores one row of V logits; rows are `stride` apart. See `cross_entropy_triton.score`."""
    n = tl.program_id(0).to(tl.int64)  # n * stride may exceed 2^31
    row_ptr = logits_ptr + n * stride
    target = tl.load(targets_ptr + n)
    right = _capped(tl.load(row_ptr + target).to(tl.float32), softcap, CAPPED)

    # -1e38 in place of -inf, because 0 times it is 0 and not NaN
    greatest, total, dot, plain = -1e38, 0.0, 0.0, 0.0
    for start in range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        x = _capped(tl.load(row_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32), softcap, CAPPED)
        x = tl.where(v < V, x, float("-inf"))
        new = tl.maximum(greatest, tl.max(x, 0))
        exp, shrunk = tl.exp(x - new), tl.exp(greatest - new)
        if ENTROPY:  # dot: the sum of exp(x - greatest) * (x - greatest)
            dot = (dot + total * (greatest - new)) * shrunk + tl.sum(exp * tl.maximum(x - new, -1e38), 0)
        if SMOOTHED:
            plain += tl.sum(tl.where(v < V, x, 0.0), 0)
        total = total * shrunk + tl.sum(exp, 0)
        greatest = new

    log_total = tl.log(total)
    nll = log_total + (greatest - right)
    loss = nll
    if SMOOTHED:
        loss = nll + smoothing * (right - plain / V)
    tl.store(nll_ptr + n, nll)
    tl.store(loss_ptr + n, loss)
    tl.store(correct_ptr + n, right >= greatest)
    if ENTROPY:
        tl.store(entropy_ptr + n, log_total - dot / total)
    if GRADIENT:
        for start in range(0, V, BLOCK):
            v = start + tl.arange(0, BLOCK)
            x = tl.load(row_ptr + v, mask=v < V, other=0.0).to(tl.float32)
            capped = _capped(x, softcap, CAPPED)
            gradient = tl.exp(capped - greatest) / total
            if SMOOTHED:
                gradient -= smoothing / V
            gradient -= tl.where(v == target, 1.0 - smoothing, 0.0)
            if CAPPED:
                gradient *= 1.0 - (capped / softcap) * (capped / softcap)
            tl.store(row_ptr + v, (gradient * scale).to(logits_ptr.dtype.element_ty), mask=v < V)


@triton.jit
def _capped(x, softcap, CAPPED: tl.constexpr):
    """softcap * tanh(x / softcap) if there is a cap; tanh(y) = 1 - 2 / (exp(2 y) + 1)."""
    if CAPPED:
        x = softcap * (1.0 - 2.0 / (tl.exp(2.0 * (x / softcap)) + 1.0))
    return x
