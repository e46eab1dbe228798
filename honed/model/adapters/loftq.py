"""Initialises LoRA on a 4-bit base to compensate for the rounding (LoftQ, Li et al., arXiv:2310.08659).

peft's `init_lora_weights="loftq"` needs a GPU and an unquantised base, which it replaces. This module does the first
step of the paper's Algorithm 1 on any device, for a base that bitsandbytes has quantised.

    R  rank of the adapter;  I, O  inputs and outputs of a layer
"""

from __future__ import annotations

from typing import Any

import torch

from honed.errors import ModelError
from honed.model.load.load import load_model

ADAPTER = "default"  # peft's name for the first adapter of a model


@torch.no_grad()
def start_at_residual(model: Any) -> None:
    """Sets every LoRA pair, in place, to the best approximation of W - dequantised(W) with its rank.

    The original weights are loaded from the model's source on the CPU, and freed again.

    Args:
        model: a peft model with a new LoRA adapter on a base in 4 bits.

    Raises:
        ModelError: no LoRA layer has 4-bit weights, or the original cannot be loaded.
    """
    from bitsandbytes.functional import dequantize_4bit

    base = model.get_base_model()
    layers = {
        name: module
        for name, module in base.named_modules()
        if hasattr(module, "lora_A") and getattr(module.get_base_layer().weight, "quant_state", None) is not None
    }
    if not layers:
        raise ModelError("LoftQ needs a base in 4 bits.", fix="set quantization: nf4, or another init")
    original = load_model(base.config._name_or_path, device=torch.device("cpu"), dtype=torch.float32)
    for name, module in layers.items():
        weight = module.get_base_layer().weight
        rounded = dequantize_4bit(weight.data, weight.quant_state).float()
        residual = original.get_submodule(name).weight.to(rounded.device) - rounded
        u, s, vh = torch.linalg.svd(residual / module.scaling[ADAPTER], full_matrices=False)
        rank = min(module.r[ADAPTER], len(s))  # in a layer narrower than r the other rows stay zero
        root = s[:rank].sqrt()
        a_RI, b_OR = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
        a_RI.zero_()[:rank] = root[:, None] * vh[:rank]
        b_OR.zero_()[:, :rank] = u[:, :rank] * root
