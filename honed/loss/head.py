"""Scores of tokens at the LM head: only at trained positions, and without the whole logits.

Shapes: B rows, L tokens, D hidden size, V vocabulary, N trained tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from honed.loss.objective import Objective, Targets
from honed.ops.linear_cross_entropy import TokenScores, linear_cross_entropy
from honed.ops.token_factor import greatest_logits, token_factor


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTransform:
    """What a model does to its logits after the LM head: softcap * tanh(scale * logits / softcap).

    Attributes:
        scale: factor, applied first (Cohere's `logit_scale`, 1 / Granite's `logits_scaling`).
        softcap: the limit on the logits (Gemma 2); None for no limit.
    """

    scale: float = 1.0
    softcap: float | None = None


class ScoringHead(nn.Linear):
    """Replaces a model's LM head and shares its parameters.

    Outside `scoring` it is the same linear layer. Inside, its forward computes the loss at the trained positions (and
    the gradient), and returns a ticket of shape (1, 1, 1) instead of logits: its value is 0, its gradient that of
    the loss. What the model does to logits afterwards keeps zero at zero and multiplies the gradient by
    `transform.scale`, which `take` divides out again. `find_seams` tests both on the actual model.

    Attributes:
        tied_weight_VD: the weight that the tied embedding passed on in this forward (see `honed.loss.tied_embedding`).
    """

    def __init__(self, head: nn.Linear, transform: LogitTransform | None = None) -> None:
        super().__init__(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        self.weight = head.weight
        self.bias = head.bias
        self.training = head.training
        self.transform = transform or LogitTransform()
        self._task: tuple[Targets, Objective, bool] | None = None
        self._scores: TokenScores | None = None
        self.tied_weight_VD: torch.Tensor | None = None

    @property
    def is_scoring(self) -> bool:
        """Whether the next forward scores targets."""
        return self._task is not None

    @contextmanager
    def scoring(self, targets: Targets, *, objective: Objective | None = None, extras: bool = False) -> Iterator[None]:
        """Within this block, the model's forward scores these targets.

        Args:
            objective: the loss of a token; None for the negative log-likelihood.
            extras: also compute entropy and correctness.
        """
        self._task, self._scores = (targets, objective or Objective(), extras), None
        try:
            yield
        finally:
            self._task = self.tied_weight_VD = None

    def forward(self, h_BLD: torch.Tensor) -> torch.Tensor:
        """Logits (B, L, V), or inside `scoring` the ticket (1, 1, 1)."""
        if self._task is None:
            return super().forward(h_BLD)
        targets, objective, extras = self._task
        h_ND = h_BLD.reshape(-1, h_BLD.shape[-1]).index_select(0, targets.index_N)
        scale = self.transform.scale
        bias_V: torch.Tensor | None = self.bias
        if scale != 1:  # scale * (W h + b) = W (scale * h) + scale * b; autograd does the rest
            h_ND, bias_V = h_ND * scale, None if bias_V is None else bias_V * scale
        scores = linear_cross_entropy(
            h_ND,
            self.weight if self.tied_weight_VD is None else self.tied_weight_VD,
            targets.ids_N,
            targets.shares_N(h_ND.dtype),  # divided here, because the gradient is computed here too
            bias_V=bias_V,
            kind=objective.kind,
            label_smoothing=objective.label_smoothing,
            softcap=self.transform.softcap,
            extras=extras,
        )
        self._scores = replace(scores, loss=scores.loss.detach())
        # the subtraction sets the shape without a view: FSDP2 warns about modules that return views
        return scores.loss - self._scores.loss.reshape(1, 1, 1)

    def take(self, output_111: torch.Tensor) -> TokenScores:
        """The scores of the last forward; they can be taken only once.

        Args:
            output_111: the `logits` of the model's output. The loss is connected to them, because wrappers that hook a
                module's outputs (FSDP, DDP) must see that the loss depends on them.

        Raises:
            RuntimeError: the model's forward did not call this head.
        """
        scores, self._scores = self._scores, None
        if scores is None:
            raise RuntimeError("the model's forward did not call its LM head")
        return replace(scores, loss=scores.loss + output_111.reshape(()) / self.transform.scale)


def score_logits(logits_NV: torch.Tensor, targets: Targets, objective: Objective, *, extras: bool) -> TokenScores:
    """Scores from logits that exist already; softmax in float32 (float64 stays float64)."""
    logits_NV = logits_NV.float() if logits_NV.dtype in (torch.float16, torch.bfloat16) else logits_NV
    logp_NV = torch.log_softmax(logits_NV, dim=-1)
    nll_N = loss_N = -logp_NV.gather(-1, targets.ids_N[:, None]).squeeze(-1)
    if objective.label_smoothing:
        loss_N = torch.lerp(nll_N, -logp_NV.mean(-1), objective.label_smoothing)
    factor_N = token_factor(objective.kind, nll_N, greatest_logits(objective.kind, logits_NV))
    loss_N = loss_N if factor_N is None else loss_N * factor_N
    scores = TokenScores(loss=(loss_N * targets.shares_N(logits_NV.dtype)).sum(), nll_N=nll_N.detach())
    if not extras:
        return scores
    with torch.no_grad():
        entropy_N = -logp_NV.exp().mul_(logp_NV).sum(-1)
        return replace(scores, entropy_N=entropy_N, correct_N=logp_NV.amax(-1) <= -nll_N)
