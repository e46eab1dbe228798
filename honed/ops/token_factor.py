"""What published objectives multiply a token's loss by; no gradient passes through it.

One more of them is a word in `KINDS`, a line of `token_factor`, and a line of the reference in
tests/ops/test_linear_cross_entropy.py.

Shapes: n tokens, V vocabulary, K greatest logits.
"""

from __future__ import annotations

import torch

KINDS = ("nll", "dft", "eaft")
EAFT_TOKENS, EAFT_NATS = 20, 3.0  # of the authors' code; 3 is about ln(20), the greatest entropy of 20 tokens


def greatest_logits(kind: str, logits_nV: torch.Tensor, *, softcap: float | None = None) -> torch.Tensor | None:
    """The logits (n, K), soft-capped and float32 or wider, that this kind's factor is made of; None where of none.

    Scoring overwrites logits, so these are taken before. A soft cap keeps their order.
    """
    if kind != "eaft":
        return None
    top_nK = logits_nV.detach().topk(min(EAFT_TOKENS, logits_nV.shape[-1]), sorted=False).values
    top_nK = top_nK.to(torch.promote_types(top_nK.dtype, torch.float32))
    return top_nK if softcap is None else softcap * torch.tanh(top_nK / softcap)


def token_factor(kind: str, nll_n: torch.Tensor, top_nK: torch.Tensor | None) -> torch.Tensor | None:
    """The factor of each token's loss, from 0 to 1; None for 1.

    Args:
        kind: "nll", 1; "dft", the token's probability (Dynamic Fine-Tuning, arXiv:2508.05629); "eaft", the entropy of
            the 20 likeliest tokens alone, divided by 3 nats (Entropy-Adaptive Fine-Tuning, arXiv:2601.02151).
        nll_n: the negative log-likelihood in nats.
        top_nK: what `greatest_logits` gave.
    """
    if kind == "dft":
        return nll_n.detach().neg().exp()
    return None if top_nK is None else torch.special.entr(top_nK.softmax(-1)).sum(-1) / EAFT_NATS
