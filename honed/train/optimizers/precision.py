"""Warns if small updates would be lost in the weights' dtype; see docs/precision.md.

`bf16=True` enables torch's autocast: products are in bfloat16, and the weights keep the dtype they were loaded in.
"""

from __future__ import annotations

import torch
from torch import nn

from honed.errors import RecipeError
from honed.train.options.config import SFTConfig
from honed.train.options.optim import rounds_stochastically
from honed.train.options.surroundings import uses_deepspeed

# Optimizers that compensate for rounding, always or if `optim_args` contains one of these words.
COMPENSATED = ("stable_adamw",)
COMPENSATING_WORDS = ("stochastic", "kahan")


def notes_on_masters(model: nn.Module, args: SFTConfig) -> list[str]:
    """Notes on the dtype of the trained weights.

    Raises:
        RecipeError: fp16=True with float16 weights, whose gradients torch's scaler refuses to unscale.
    """
    if (n_half := _trained_in(model, torch.float16)) and not uses_deepspeed(args):
        told = f"{n_half:,} weights are trained in float16"
        if args.fp16:
            fix = "load the model in float32 (dtype='float32'): fp16=True still computes in float16"
            raise RecipeError(f"{told}, whose gradients the scaler of fp16=True cannot unscale.", fix=fix)
        return [
            f"{told}, without a scaler: small gradients become 0, large ones infinite. Load the model in float32 or "
            "bfloat16."
        ]
    n_weights = _trained_in(model, torch.bfloat16)
    if rounds_stochastically(args):
        note = "bf16_stochastic_round has no effect: no weight that is trained is bfloat16. Load the model with dtype="
        return [] if n_weights else [f"{note}'bfloat16' to train it in half the memory, or leave it out."]
    own = args.optim.value in COMPENSATED or any(word in (args.optim_args or "") for word in COMPENSATING_WORDS)
    if not n_weights or own or uses_deepspeed(args):  # DeepSpeed keeps float32 copies
        return []
    return [
        f"{n_weights:,} weights are trained in bfloat16, where an update below about 1/512 of its weight is lost. Load "
        "the model in float32 (leave dtype out; bf16=True still computes in bfloat16), or, with AdamW, set "
        "optim_args='bf16_stochastic_round=True'."
    ]


def _trained_in(model: nn.Module, dtype: torch.dtype) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad and p.dtype == dtype)
