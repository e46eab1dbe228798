"""Cross entropy of a linear layer's logits: loss and gradients in one pass over tiles, without the whole logits.

The gradient of the loss with respect to the logits depends only on the logits, the targets and the token weights. So
the forward pass turns each tile of logits into its gradient in place and at once computes from it the gradients of the
hidden states and of the layer: three matrix products per tile, like Liger-Kernel (arXiv:2410.10989). Recomputing the
logits in the backward pass would need a fourth. The backward pass only returns these gradients.

A tile is a few hundred tokens by the whole vocabulary, enough for a full-speed matrix product. Elementwise operations
run over blocks of the tile that fit into the processor's cache. The factors of a row (its weight, 1 / sum of
exponentials) are applied to the smaller matrices instead of the tile.

Half precision has neither the range for this (float16 covers 6e-8 to 65,504, and the gradient scaler's factor comes
only in the backward pass) nor the precision. There a tile holds (prediction - target), times 256 in float16; weights
are relative to the largest one, which the backward pass multiplies in; and float16 products for the layer's gradient
are accumulated in float32.

On a GPU a tile is scored by a Triton kernel (`cross_entropy_triton.py`) or by a few large operations, without device
synchronisation. Measured on CPU only.

Shapes: N tokens, n tokens in a tile or block, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from honed.ops.cross_entropy import HALF_SCALE, Part, Scoring, score
from honed.ops.cross_entropy_triton import can_score
from honed.ops.products import add_mm, compute_dtype, mm

# Logits per tile: on CPU as many as the last-level cache holds, but enough rows for a matrix product. On a GPU each
# tile adds to the layer's gradient in float32, 8 bytes of traffic per weight: about 1,000 rows hide this cost.
TILE_ELEMENTS = {"cpu": 1 << 22, "gpu": 1 << 26}
TILE_MIN_ROWS = 128
TILE_MIN_ROWS_TRAINED = {"cpu": 128, "gpu": 1024}
# Logits per block, over which several elementwise operations run: 1 MB in float32.
BLOCK_ELEMENTS = 1 << 18
# Elements of a half-precision product that are computed at a time and added to the float32 sum.
SUM_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """How well each token was predicted, and the loss.

    Attributes:
        loss: scalar, the weighted sum over the tokens, float32 (float64 for float64 logits); carries the gradient.
        nll_N: negative log-likelihood in nats, without weight or smoothing.
        entropy_N: entropy of the prediction in nats; None unless asked for.
        correct_N: bool, whether no token was more likely than the target; None unless asked for.
    """

    loss: torch.Tensor
    nll_N: torch.Tensor
    entropy_N: torch.Tensor | None = None
    correct_N: torch.Tensor | None = None


class _Options(NamedTuple):
    asked: Scoring
    rows: int | None


class _Tokens(NamedTuple):
    h_ND: torch.Tensor
    targets_N: torch.Tensor
    weights_N: torch.Tensor


class _Layer(NamedTuple):
    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None


class _Wanted(NamedTuple):
    """Which gradients are wanted."""

    h: bool = False
    weight: bool = False
    bias: bool = False


def linear_cross_entropy(
    h_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    weights_N: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    kind: str = "nll",
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    extras: bool = False,
    rows: int | None = None,
) -> TokenScores:
    """The weighted sum of the tokens' losses, where the logits are `h_ND @ weight_VD.T + bias_V`.

    In grad mode, the gradients of h, weight and bias (those that require one) are computed here and summed over tiles
    in float32 or wider. Under autocast the products run in its dtype. Backward multiplies the gradients by the incoming
    one, which is free if that is 1, so normalise `weights_N` beforehand. On CPU backward may run again (retain_graph).
    Double backward is not supported.

    Args:
        targets_N: int64 token ids.
        weights_N: float32, the weight of each token's loss.
        kind: the factor of each token's loss (see `honed.ops.token_factor`).
        label_smoothing: e in the token's loss (1 - e) * nll + e * mean over the vocabulary of -log p, as in
            transformers' `LabelSmoother`.
        softcap: logits become softcap * tanh(logits / softcap).
        extras: also compute entropy and correctness. Where gradients are computed, the entropy follows from them at
            almost no cost (`_entropy`), and is only as exact as they are in half precision.
        rows: tokens per tile; None to choose automatically.
    """
    options = _Options(Scoring(kind=kind, label_smoothing=label_smoothing, softcap=softcap, correct=extras), rows)
    if not torch.is_grad_enabled():
        return _over_tiles(_Tokens(h_ND, targets_N, weights_N), _Layer(weight_VD, bias_V), options, _Wanted())[0]
    loss, nll_N, entropy_N, correct_N = _LinearCrossEntropy.apply(
        h_ND, weight_VD, bias_V, (targets_N, weights_N), options
    )
    return TokenScores(loss=loss, nll_N=nll_N, entropy_N=entropy_N, correct_N=correct_N)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - called by position, as autograd does
        ctx: Any,
        h_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_and_weights: tuple[torch.Tensor, torch.Tensor],
        options: _Options,
    ) -> tuple[torch.Tensor | None, ...]:
        wanted = _Wanted(*ctx.needs_input_grad[:3])
        tokens, layer = _Tokens(h_ND, *targets_and_weights), _Layer(weight_VD, bias_V)
        scores, gradients = _over_tiles(tokens, layer, options, wanted)
        ctx.save_for_backward(*gradients)
        ctx.dtype, ctx.dtypes = h_ND.dtype, (weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        others = (scores.nll_N, scores.entropy_N, scores.correct_N)
        ctx.mark_non_differentiable(*(tensor for tensor in others if tensor is not None))
        return scores.loss, *others

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        dh_ND, factor_N, dweight_VD, dbias_V, unit = ctx.saved_tensors
        if dh_ND is not None:
            dh_ND = (dh_ND * (factor_N * above)[:, None]).to(ctx.dtype)
        above = above if unit is None else above * unit
        weight_dtype, bias_dtype = ctx.dtypes
        return dh_ND, _times(dweight_VD, above, weight_dtype), _times(dbias_V, above, bias_dtype), None, None


def _times(gradient: torch.Tensor | None, above: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor | None:
    """The gradient itself where `above` is 1, so that autograd can keep it without a copy."""
    if gradient is None:
        return None
    if gradient.dtype != dtype:  # float16 parameters: before this factor, the gradient may be too small for float16
        return (gradient * above).to(dtype)
    if above.device.type == "cpu":
        return gradient if above == 1 else gradient * above.to(gradient.dtype)
    # In place: reading `above` would wait for the device, and a V x D copy would raise the memory peak. Autograd then
    # refuses a second backward, because a saved tensor was modified.
    return gradient.mul_(above.to(gradient.dtype))


def _over_tiles(
    tokens: _Tokens, layer: _Layer, options: _Options, wanted: _Wanted
) -> tuple[TokenScores, tuple[torch.Tensor | None, ...]]:
    """The scores, and the gradients: (N, D) with the factors (N,) that its rows still have to be multiplied by; (V, D)
    and (V,) with the scalar factor of both (None for 1)."""
    h_ND, targets_N, weights_N = tokens
    device, rows = h_ND.device.type, options.rows or _rows(h_ND, layer, trained=wanted.weight)
    several = len(h_ND) > rows
    dweight = _Sum(layer.weight_VD, several=several) if wanted.weight else None
    dbias = _Sum(layer.bias_V, several=several) if wanted.bias and layer.bias_V is not None else None
    dtype = compute_dtype(h_ND)
    unit = _unit(weights_N, dtype)
    with torch.autocast(device, enabled=False):
        h_ND = h_ND.to(dtype)
        layer = _Layer(layer.weight_VD.to(dtype), None if layer.bias_V is None else layer.bias_V.to(dtype))
        dh_ND = torch.empty_like(h_ND) if wanted.h else None
        buffer_nV = h_ND.new_empty(min(rows, len(h_ND)), len(layer.weight_VD))
        scoring = _scoring(options.asked, wanted, layer, buffer_nV)
        parts = []
        for tile in _slices(len(h_ND), rows):
            tile_nV = _linear(h_ND[tile], layer, out=buffer_nV[: tile.stop - tile.start])
            part = _each_block(tile_nV, targets_N[tile], weights_N[tile], scoring)
            factor_n = part.count_n / part.times_n
            factor_n1 = (factor_n if unit is None else factor_n / unit)[:, None].to(dtype)
            if dh_ND is not None:
                dh_ND[tile] = mm(tile_nV, layer.weight_VD)
            if dweight is not None:
                dweight.add(tile_nV.t(), h_ND[tile] * factor_n1)
            if dbias is not None:
                dbias.add(tile_nV.t(), factor_n1)
            parts.append(part)
            del tile_nV  # oneDNN ignores the buffer, so free this tile before the next one is allocated
    part = _joined(parts)
    if scoring.correct and not scoring.entropy and dh_ND is not None:
        part = part._replace(entropy_n=_entropy(part, h_ND, dh_ND))
    scores = TokenScores(
        loss=(part.loss_n * part.count_n).sum(),
        nll_N=part.nll_n,
        entropy_N=part.entropy_n,
        correct_N=part.correct_n,
    )
    factor_N = part.count_n / part.times_n
    return scores, (dh_ND, factor_N, *(None if total is None else total.result() for total in (dweight, dbias)), unit)


def _scoring(asked: Scoring, wanted: _Wanted, layer: _Layer, logits_nV: torch.Tensor) -> Scoring:
    """For the extras, computes the entropy from the logits if the gradient cannot give it or a kernel is used."""
    from_gradient = wanted.h and layer.bias_V is None and asked.softcap is None and not can_score(logits_nV)
    return replace(asked, gradient=any(wanted), entropy=asked.correct and not from_gradient)


def _rows(h_ND: torch.Tensor, layer: _Layer, *, trained: bool) -> int:
    """Tokens per tile: as few tiles as possible, all of about the same height."""
    device = "cpu" if h_ND.device.type == "cpu" else "gpu"
    least = TILE_MIN_ROWS_TRAINED[device] if trained else TILE_MIN_ROWS
    most = max(least, TILE_ELEMENTS[device] // len(layer.weight_VD))
    return -(-len(h_ND) // max(1, -(-len(h_ND) // most))) or 1


def _unit(weights_N: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """The unit of the layer's gradients in half precision, which keeps factors at most 1; otherwise None."""
    if dtype not in HALF_SCALE or not len(weights_N):
        return None
    return weights_N.amax().clamp(min=torch.finfo(weights_N.dtype).tiny) / HALF_SCALE[dtype]


def _each_block(
    tile_nV: torch.Tensor,
    targets_n: torch.Tensor,
    weights_n: torch.Tensor,
    scoring: Scoring,
) -> Part:
    rows = max(1, BLOCK_ELEMENTS // tile_nV.shape[1]) if tile_nV.device.type == "cpu" else len(tile_nV)
    blocks = _slices(len(tile_nV), max(rows, 1))
    return _joined([score(tile_nV[b], targets_n[b], weights_n[b], scoring) for b in blocks])


def _entropy(part: Part, h_ND: torch.Tensor, dh_ND: torch.Tensor) -> torch.Tensor:
    """Entropy in nats, without a pass over the logits.

    With p the prediction, t the smoothed target and x the logits, `h . dh` is the sum over the vocabulary of
    times * (p - t) * x, because dh is times * (p - t) @ weight. And entropy = cross entropy - sum of (p - t) * x.
    """
    dot_N = torch.linalg.vecdot(h_ND.to(part.loss_n.dtype), dh_ND.to(part.loss_n.dtype))
    return (part.loss_n - dot_N / part.times_n).clamp_(min=0)


class _Sum:
    """The sum of matrix products `a_Vn @ b_nD`, with the shape and dtype of `like`.

    In bfloat16 a single product is exact enough; the sum of `several` is kept in float32. For float16, both products
    and sum are float32, and the backward pass casts the result.
    """

    def __init__(self, like: torch.Tensor, *, several: bool) -> None:
        self._shape, self._dtype = like.shape, torch.float32 if like.dtype == torch.float16 else like.dtype
        self._sum_dtype = torch.float32 if several and like.dtype in HALF_SCALE else self._dtype
        self._sum_VD: torch.Tensor | None = None

    def add(self, a_Vn: torch.Tensor, b_nD: torch.Tensor) -> None:
        if a_Vn.dtype == self._sum_dtype and self._sum_VD is not None:
            add_mm(self._sum_VD, a_Vn, b_nD)
            return
        if a_Vn.dtype != torch.float16 and self._sum_VD is None:
            # not added to zeros: at this size every pass over the memory is expensive
            self._sum_VD = mm(a_Vn, b_nD).to(self._sum_dtype)
            return
        if self._sum_VD is None:
            self._sum_VD = a_Vn.new_zeros(len(a_Vn), b_nD.shape[1], dtype=self._sum_dtype)
        for part in _slices(len(a_Vn), max(1, SUM_ELEMENTS // b_nD.shape[1])):
            self._sum_VD[part].add_(_product(a_Vn[part], b_nD))

    def result(self) -> torch.Tensor | None:
        if self._sum_VD is None:
            return None
        total = self._sum_VD.to(self._dtype)
        # not a view: autograd accumulates in place only into tensors that share no memory
        return total if total.shape == self._shape else total.reshape(self._shape)


def _product(a_Vn: torch.Tensor, b_nD: torch.Tensor) -> torch.Tensor:
    """The product, in float32 for float16 matrices; only CUDA returns its float32 accumulator directly."""
    if a_Vn.dtype != torch.float16:
        return a_Vn @ b_nD
    return torch.mm(a_Vn, b_nD, out_dtype=torch.float32) if a_Vn.is_cuda else mm(a_Vn.float(), b_nD.float())


def _linear(h_nD: torch.Tensor, layer: _Layer, *, out: torch.Tensor) -> torch.Tensor:
    if layer.bias_V is None:
        return mm(h_nD, layer.weight_VD.t(), out=out)
    return torch.addmm(layer.bias_V, h_nD, layer.weight_VD.t(), out=out)


def _slices(length: int, size: int) -> Iterator[slice]:
    """[0, length) in slices of `size`; one empty slice for length 0, so that empty sums have the right shapes."""
    return (slice(start, min(start + size, length)) for start in range(0, max(length, 1), size))


def _joined(parts: list[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    columns = zip(*parts, strict=True)
    joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
    return Part(*joined)
