"""The loss of a token, the label shift and the denominator of a step.

The loss of an optimizer step is the sum of the weighted token losses of all its micro-batches on all ranks, divided by
the sum of their weights. It is never a mean of means, so it does not depend on how rows were batched.

Shapes: B rows, L tokens, N trained tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from honed.errors import RecipeError
from honed.ops.token_factor import KINDS

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The loss of one token, before its weight.

    Attributes:
        kind: "nll", the negative log-likelihood, or a published objective that multiplies each token's loss by a
            factor; see `honed.ops.token_factor`.
        label_smoothing: e in (1 - e) * nll + e * mean over the vocabulary of -log p.

    Raises:
        RecipeError: unknown kind, label smoothing outside [0, 1), or label smoothing with a kind other than "nll".
    """

    kind: str = "nll"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RecipeError(f"loss_type={self.kind!r} is not known.", fix=f"use one of {', '.join(KINDS)}")
        if not 0 <= self.label_smoothing < 1:
            raise RecipeError(
                f"label_smoothing_factor={self.label_smoothing} is not within [0, 1).", fix="0.1 is a common value"
            )
        if self.kind != "nll" and self.label_smoothing:
            raise RecipeError(
                f"loss_type={self.kind!r} and label_smoothing_factor are mutually exclusive: one trusts what the model "
                "predicts already, the other distrusts it.",
                fix="leave one of them out",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The targets at the N trained positions of a batch.

    Attributes:
        index_N: int64, the positions in the flattened batch.
        ids_N: int64, the next token at each position.
        weights_N: float32, the weight of each token's loss.
        total: the divisor of all losses.
    """

    index_N: torch.Tensor
    ids_N: torch.Tensor
    weights_N: torch.Tensor
    total: torch.Tensor | float = 1.0

    def shares_N(self, dtype: torch.dtype) -> torch.Tensor:
        """weights_N / total, for logits of this dtype: in float32, or float64."""
        return self.weights_N.to(torch.promote_types(dtype, torch.float32)) / self.total


def targets_of(
    labels_BL: torch.Tensor,
    weights_BL: torch.Tensor | None,
    *,
    count: int | None = None,
    total: torch.Tensor | float = 1.0,
) -> Targets:
    """The targets of a batch.

    Args:
        labels_BL: int64, -100 for tokens that are not trained.
        weights_BL: float32; None for 1 everywhere.
        count: the number of targets, if known; saves a device synchronisation.
        total: the token weight of the whole step, by which the sum of losses is divided.
    """
    ids_M = next_token_targets(labels_BL).reshape(-1)
    if count is None:
        index_N = torch.nonzero(ids_M != IGNORE_INDEX).squeeze(1)
    else:
        index_N = torch.nonzero_static(ids_M != IGNORE_INDEX, size=count).squeeze(1)
    ids_N = ids_M.index_select(0, index_N)
    if weights_BL is None:
        weights_N = torch.ones_like(ids_N, dtype=torch.float32)
    else:  # a trained position is never the last of a row, so position + 1 is in the same row
        weights_N = weights_BL.reshape(-1).index_select(0, index_N + 1)
    return Targets(index_N=index_N, ids_N=ids_N, weights_N=weights_N, total=total)


def next_token_targets(labels_BL: torch.Tensor) -> torch.Tensor:
    """The target of each position: the next position's label; the last position has none.

    This is the only shift in the project. `render` has set the label (int64) of each document's first token to -100;
    otherwise the last token of one document in a flat row would have to predict the first token of the next.
    """
    targets_BL = torch.full_like(labels_BL, IGNORE_INDEX)
    targets_BL[..., :-1] = labels_BL[..., 1:]
    return targets_BL


def total_weight(labels_BL: torch.Tensor, weights_BL: torch.Tensor | None) -> torch.Tensor:
    """Sum of the weights of this batch's trained tokens: its contribution to the step's denominator."""
    trained_BL = labels_BL[..., 1:] != IGNORE_INDEX
    if weights_BL is None:
        return trained_BL.sum()
    return (weights_BL[..., 1:] * trained_BL).sum()
