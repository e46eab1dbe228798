"""Scores of a block of logits, which are overwritten with their gradient: in plain PyTorch, or by one Triton kernel.

Shapes: n tokens in the block, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from honed.ops import cross_entropy_triton
from honed.ops.token_factor import greatest_logits, token_factor

# Factor of a block's gradient. In float16 it keeps small probabilities above 6e-8, and sums over the vocabulary, for
# weights up to 128, below 65,504.
HALF_SCALE = {torch.float16: 256.0, torch.bfloat16: 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """What to compute for a block.

    Attributes:
        kind, label_smoothing, softcap: as in `linear_cross_entropy`.
        correct: whether the target was the most likely token.
        entropy: the entropy of the prediction, from the logits.
        gradient: replace the logits with their gradient.
    """

    kind: str = "nll"
    label_smoothing: float = 0.0
    softcap: float | None = None
    correct: bool = False
    entropy: bool = False
    gradient: bool = False


class Part(NamedTuple):
    """Results for each token of a block, of a tile, or of all tiles.

    Attributes:
        loss_n: the token's unweighted loss.
        count_n: its weight, times its factor (see `honed.ops.token_factor`) if the objective has one.
        times_n: the factor by which the gradient in the block is too large: the sum over the vocabulary of
            exp(logit - max logit) in plain PyTorch, HALF_SCALE in half precision, 1 in the float32 kernel.
    """

    loss_n: torch.Tensor
    nll_n: torch.Tensor
    count_n: torch.Tensor
    times_n: torch.Tensor
    entropy_n: torch.Tensor | None
    correct_n: torch.Tensor | None


def score(logits_nV: torch.Tensor, targets_n: torch.Tensor, weights_n: torch.Tensor, wanted: Scoring) -> Part:
    """Scores of logits, which are overwritten; with times_n times the gradient of loss_n if `wanted.gradient`."""
    top_nK = greatest_logits(wanted.kind, logits_nV, softcap=wanted.softcap)
    in_place = _by_kernel if cross_entropy_triton.can_score(logits_nV) else _in_torch
    part = in_place(logits_nV, targets_n, weights_n, wanted)
    factor_n = token_factor(wanted.kind, part.nll_n, top_nK)
    return part if factor_n is None else part._replace(count_n=weights_n * factor_n)


def _by_kernel(logits_nV: torch.Tensor, targets_n: torch.Tensor, weights_n: torch.Tensor, wanted: Scoring) -> Part:
    scale = HALF_SCALE.get(logits_nV.dtype, 1.0)
    loss_n, nll_n, entropy_n, correct_n = cross_entropy_triton.score(
        logits_nV,
        targets_n,
        label_smoothing=wanted.label_smoothing,
        softcap=wanted.softcap,
        entropy=wanted.entropy,
        scale=scale if wanted.gradient else None,
    )
    return Part(
        loss_n=loss_n,
        nll_n=nll_n,
        count_n=weights_n,
        times_n=torch.full_like(nll_n, scale),
        entropy_n=entropy_n,
        correct_n=correct_n if wanted.correct else None,
    )


def _in_torch(logits_nV: torch.Tensor, targets_n: torch.Tensor, weights_n: torch.Tensor, wanted: Scoring) -> Part:
    x_nV = logits_nV.float() if logits_nV.dtype in HALF_SCALE else logits_nV
    tanh_nV = None
    if wanted.softcap is not None:
        tanh_nV = x_nV.div_(wanted.softcap).tanh_().clone()
        x_nV.mul_(wanted.softcap)
    x_nV.sub_(x_nV.amax(-1, keepdim=True))
    right_n = x_nV.gather(1, targets_n[:, None]).squeeze(1)
    mean_n = x_nV.mean(-1) if wanted.label_smoothing else None
    exp_nV = x_nV.exp() if wanted.entropy else x_nV.exp_()
    total_n = exp_nV.sum(-1)
    log_total_n = total_n.log()
    nll_n = log_total_n - right_n
    part = Part(
        loss_n=nll_n if mean_n is None else torch.lerp(nll_n, log_total_n - mean_n, wanted.label_smoothing),
        nll_n=nll_n,
        count_n=weights_n,
        times_n=total_n,
        entropy_n=log_total_n - torch.linalg.vecdot(exp_nV, x_nV) / total_n if wanted.entropy else None,
        correct_n=right_n >= 0 if wanted.correct else None,
    )
    if wanted.gradient:
        _to_gradient(exp_nV, tanh_nV, targets_n, total_n, wanted.label_smoothing)
        if scale := HALF_SCALE.get(logits_nV.dtype):
            exp_nV.mul_(scale / total_n[:, None])
            part = part._replace(times_n=torch.full_like(total_n, scale))
        if exp_nV is not logits_nV:
            logits_nV.copy_(exp_nV)
    return part


def _to_gradient(
    exp_nV: torch.Tensor, tanh_nV: torch.Tensor | None, targets_n: torch.Tensor, total_n: torch.Tensor, smoothing: float
) -> None:
    """In place: total_n * (softmax - smoothed target), times the derivative of the soft cap if there is one."""
    total_n1 = total_n[:, None]
    exp_nV.scatter_add_(1, targets_n[:, None], total_n1 * (smoothing - 1))
    if smoothing:
        exp_nV.sub_(total_n1 * (smoothing / exp_nV.shape[1]))
    if tanh_nV is not None:
        exp_nV.mul_(tanh_nV.square_().neg_().add_(1))
