"""Scores of tokens at the LM head: only at trained positions, and never the whole logits.

Shapes: B rows, L tokens, D hidden size, V vocabulary, N trained tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100
# logits of one tile: 16M float32 are 64 MB, small beside the model and large enough for a full-speed GEMM
TILE_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """How well each trained token was predicted.

    Attributes:
        nll_N: negative log-likelihood in nats, float32, with gradient.
        entropy_N: entropy of the prediction in nats, float32, no gradient; None unless asked for.
        correct_N: bool, whether the most likely token was the right one; None unless asked for.
    """

    nll_N: torch.Tensor
    entropy_N: torch.Tensor | None = None
    correct_N: torch.Tensor | None = None


class ScoringHead(nn.Linear):
    """Stands in for a model's LM head and shares its parameters.

    Outside `scoring` it is the same linear layer. Inside, its forward takes the hidden states of the positions that
    have a target and returns their negative log-likelihoods, shape (1, N, 1), where logits would be; the model's own
    `forward` runs unchanged. Models that transform logits after the head would transform these: `fits` tells.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        self.weight = head.weight
        self.bias = head.bias
        self.training = head.training
        self._targets_BL: torch.Tensor | None = None
        self._extras = False
        self._scores: TokenScores | None = None

    @contextmanager
    def scoring(self, targets_BL: torch.Tensor, *, extras: bool = False) -> Iterator[None]:
        """Within this block, the model's forward scores these targets (int64, -100 where there is none)."""
        self._targets_BL, self._extras, self._scores = targets_BL, extras, None
        try:
            yield
        finally:
            self._targets_BL = None

    def forward(self, h_BLD: torch.Tensor) -> torch.Tensor:
        """Logits (B, L, V), or inside `scoring` the negative log-likelihoods (1, N, 1)."""
        if self._targets_BL is None:
            return super().forward(h_BLD)
        chosen_BL = self._targets_BL != IGNORE_INDEX
        self._scores = score_tokens(
            h_BLD[chosen_BL], self.weight, self._targets_BL[chosen_BL], bias_V=self.bias, extras=self._extras
        )
        return self._scores.nll_N[None, :, None]

    def take(self, output_1N1: torch.Tensor) -> TokenScores:
        """The scores of the forward that just ran.

        Args:
            output_1N1: the `logits` of the model's output; taken from there, so that wrappers that hook a module's
                outputs (FSDP, DDP) see the loss depend on them.
        """
        scores, self._scores = self._scores, None
        if scores is None:
            raise RuntimeError("the model's forward did not call its LM head")
        nll_N = output_1N1.reshape(-1)
        return TokenScores(nll_N=nll_N, entropy_N=scores.entropy_N, correct_N=scores.correct_N)


def score_tokens(
    h_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    extras: bool = False,
    tile_elements: int = TILE_ELEMENTS,
) -> TokenScores:
    """Scores of tokens from hidden states, tile by tile: at most `tile_elements` logits exist at a time.

    With several tiles the backward pass computes each tile's logits again instead of keeping them.

    Args:
        h_ND: hidden states at trained positions.
        weight_VD: the head.
        targets_N: int64 token ids.
        extras: whether to compute entropy and correctness as well.
        tile_elements: logits per tile.
    """
    rows = max(1, tile_elements // weight_VD.shape[0])
    if len(targets_N) <= rows:
        return _score_tile(h_ND, weight_VD, targets_N, bias_V, extras)
    tiles = []
    for h_nD, targets_n in zip(h_ND.split(rows), targets_N.split(rows), strict=True):
        tile: Any = checkpoint(
            _score_tile, h_nD, weight_VD, targets_n, bias_V, extras, use_reentrant=False, preserve_rng_state=False
        )
        tiles.append(tile)
    return TokenScores(
        nll_N=torch.cat([tile.nll_N for tile in tiles]),
        entropy_N=torch.cat([tile.entropy_N for tile in tiles]) if extras else None,
        correct_N=torch.cat([tile.correct_N for tile in tiles]) if extras else None,
    )


def score_logits(logits_NV: torch.Tensor, targets_N: torch.Tensor, *, extras: bool = False) -> TokenScores:
    """Scores from logits that exist already; softmax in float32 (float64 stays float64)."""
    logits_NV = logits_NV.float() if logits_NV.dtype in (torch.float16, torch.bfloat16) else logits_NV
    logp_NV = torch.log_softmax(logits_NV, dim=-1)
    nll_N = -logp_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    if not extras:
        return TokenScores(nll_N=nll_N)
    with torch.no_grad():
        entropy_N = -logp_NV.exp().mul_(logp_NV).sum(-1)
        correct_N = logp_NV.argmax(-1) == targets_N
    return TokenScores(nll_N=nll_N, entropy_N=entropy_N, correct_N=correct_N)


def _score_tile(
    h_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, bias_V: torch.Tensor | None, extras: bool
) -> TokenScores:
    return score_logits(F.linear(h_ND, weight_VD, bias_V), targets_N, extras=extras)
