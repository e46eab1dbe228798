"""The one shift and the one denominator.

The loss of an optimizer step is the sum of the weighted token losses of all its micro-batches on all ranks, divided by
the sum of their weights. It is never a mean of means, so it does not depend on how rows were batched.

Shapes: B rows, L tokens, N trained tokens.
"""

from __future__ import annotations

import torch

from honed.loss.head import IGNORE_INDEX, TokenScores


def next_token_targets(labels_BL: torch.Tensor) -> torch.Tensor:
    """The target of each position: the label one to the right; the last position has none.

    This is the only shift in the project. Labels at a document's first token must be -100 already (`render` sees to
    it): otherwise, in a flat row, the last token of one document would be asked for the first of the next.

    Args:
        labels_BL: int64, -100 where a token is not trained.
    """
    targets_BL = torch.full_like(labels_BL, IGNORE_INDEX)
    targets_BL[..., :-1] = labels_BL[..., 1:]
    return targets_BL


def token_weights(labels_BL: torch.Tensor, weights_BL: torch.Tensor | None, targets_BL: torch.Tensor) -> torch.Tensor:
    """float32 (N,): the weight of each trained token, in the order of `targets_BL[targets_BL != -100]`."""
    if weights_BL is None:
        weights_BL = torch.ones_like(labels_BL, dtype=torch.float32)
    shifted_BL = torch.zeros_like(weights_BL)
    shifted_BL[..., :-1] = weights_BL[..., 1:]
    return shifted_BL[targets_BL != IGNORE_INDEX]


def loss_sum(scores: TokenScores, weights_N: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the negative log-likelihoods, float32 scalar. Divide it by the step's total weight, once."""
    return (scores.nll_N * weights_N).sum()


def total_weight(labels_BL: torch.Tensor, weights_BL: torch.Tensor | None) -> torch.Tensor:
    """Sum of the weights of the tokens that are trained in this batch; what `loss_sum` is to be divided by."""
    trained_BL = labels_BL[..., 1:] != IGNORE_INDEX
    if weights_BL is None:
        return trained_BL.sum()
    return (weights_BL[..., 1:] * trained_BL).sum()
