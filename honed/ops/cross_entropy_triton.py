"""Scores and gradient of logits by one Triton kernel, which reads them twice and writes them once.

Plain PyTorch passes over the same logits seven times, in half precision with a float32 copy: about 44 bytes of memory
traffic per bfloat16 logit, against 6 here. The first pass computes the maximum and the sum of exponentials together
(online softmax, arXiv:1805.02867); the second should find most of a row in the GPU's cache.

Not measured on a GPU. Tested against float64 in Triton's interpreter, which runs the same kernel on a CPU.

Shapes: n tokens, V vocabulary; one program per token.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

import torch

from honed.ops.trial import succeeds

# Logits that a program holds at a time: 16 per thread with 8 warps.
BLOCK = 4096
WARPS = 8
# Fused multiply-add, the default before Triton 3.9, which warns if it is not set; from 3.10 on it is off by default.
LAUNCH = {"num_warps": WARPS, "enable_fp_fusion": True}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def can_score(logits_nV: torch.Tensor) -> bool:
    """Whether the kernel runs here: on a GPU with Triton, or anywhere in Triton's interpreter (TRITON_INTERPRET=1).

    It is tried once per device and dtype; if it does not compile or gives wrong results, a warning says so.
    """
    if type(logits_nV) is not torch.Tensor:  # a DTensor or a fake tensor has no memory of its own
        return False
    fits = logits_nV.dtype in DTYPES and logits_nV.stride(1) == 1 and logits_nV.numel() > 0
    if not fits or not (logits_nV.is_cuda or os.environ.get("TRITON_INTERPRET") == "1") or not _has_triton():
        return False
    return _works(logits_nV.device, logits_nV.dtype)


def score(
    logits_nV: torch.Tensor,
    targets_n: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    entropy: bool = False,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Scores of each token; with `scale`, the logits are overwritten with `scale` times the gradient of the loss.

    Args:
        logits_nV: float32, bfloat16 or float16; rows may be strided.
        targets_n: int64.

    Returns:
        Loss (smoothed), negative log-likelihood and entropy (None unless asked for), float32 (n,), in nats; and bool
        (n,), whether no token was more likely than the target.
    """
    loss_n, nll_n, entropy_n = logits_nV.new_empty(3, len(logits_nV), dtype=torch.float32)
    correct_n = targets_n.new_empty(len(targets_n), dtype=torch.bool)
    with torch.cuda.device_of(logits_nV):  # Triton launches on the current device
        _kernel()[(len(logits_nV),)](
            logits_nV,
            logits_nV.stride(0),
            targets_n,
            loss_n,
            nll_n,
            entropy_n,
            correct_n,
            logits_nV.shape[1],
            label_smoothing,
            softcap or 1.0,
            scale or 0.0,
            CAPPED=softcap is not None,
            SMOOTHED=label_smoothing > 0,
            ENTROPY=entropy,
            GRADIENT=scale is not None,
            BLOCK=BLOCK,
            **LAUNCH,
        )
    return loss_n, nll_n, entropy_n if entropy else None, correct_n


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _works(device: torch.device, dtype: torch.dtype) -> bool:
    def trial() -> None:
        logits_nV = torch.arange(3.0 * 70, device=device).sin_().view(3, 70).to(dtype)  # no random numbers are drawn
        targets_n = torch.tensor([0, 35, 69], device=device)
        p_nV = logits_nV.float().softmax(-1)
        right_n = p_nV.gather(1, targets_n[:, None]).squeeze(1)
        loss_n = score(logits_nV, targets_n, scale=1.0)[0]
        torch.testing.assert_close(loss_n, -right_n.log(), rtol=0.02, atol=1e-3)
        gradient_nV = p_nV - torch.nn.functional.one_hot(targets_n, 70)
        torch.testing.assert_close(logits_nV.float(), gradient_nV, rtol=0.02, atol=1e-3)

    otherwise = f"the kernel that scores logits does not work on {device}, so PyTorch does without it"
    return succeeds(trial, otherwise=otherwise)


@cache
def _kernel() -> Any:
    """The kernel, imported at the first call because it needs Triton."""
    from honed.ops.cross_entropy_kernel import score_row

    return score_row
