"""Factors by which published objectives multiply a token's loss; no gradient flows through them.

To add one: a name in `KINDS`, a line in `token_factor`, and a line in the reference of
tests/ops/test_linear_cross_entropy.py.

Shapes: n tokens, V vocabulary, K largest logits.
"""

from __future__ import annotations

import torch

KINDS = ("nll", "dft", "eaft")
EAFT_TOKENS, EAFT_NATS = 20, 3.0  # from the authors' code; 3 is about ln(20), the maximum entropy of 20 tokens


def greatest_logits(kind: str, logits_nV: torch.Tensor, *, softcap: float | None = None) -> torch.Tensor | None:
    """The logits (n, K), soft-capped, in float32 or wider, that this kind's factor needs; None if it needs none.

    Take them before scoring, which overwrites the logits. A soft cap keeps their order.
    """
    if kind != "eaft":
        return None
    top_nK = logits_nV.detach().topk(min(EAFT_TOKENS, logits_nV.shape[-1]), sorted=False).values
    top_nK = top_nK.to(torch.promote_types(top_nK.dtype, torch.float32))
    return top_nK if softcap is None else softcap * torch.tanh(top_nK / softcap)


def token_factor(kind: str, nll_n: torch.Tensor, top_nK: torch.Tensor | None) -> torch.Tensor | None:
    """The factor of each token's loss, from 0 to 1; None for 1.

    Args:
        kind: "nll": 1; "dft": the token's probability (Dynamic Fine-Tuning, arXiv:2508.05629); "eaft": the entropy of
            the 20 most likely tokens, divided by 3 nats (Entropy-Adaptive Fine-Tuning, arXiv:2601.02151).
        nll_n: the negative log-likelihood in nats.
        top_nK: the result of `greatest_logits`.
    """
    if kind == "dft":
        return nll_n.detach().neg().exp()
    return None if top_nK is None else torch.special.entr(top_nK.softmax(-1)).sum(-1) / EAFT_NATS
