"""Runs mixture-of-experts layers in autocast's dtype, like all other layers.

transformers computes all experts by `grouped_mm`, which autocast does not cast. With float32 weights it runs in
float32, for which CUDA has no grouped kernel: torch then reads the group sizes back from the device for each product
and multiplies expert by expert. Within `experts_in_autocast` it gets its weights in autocast's dtype.

On a CPU, where float32 may be faster, nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

LIBRARY, NAME = "grouped_mm", "honed_grouped_mm"


@contextmanager
def experts_in_autocast(model: Any) -> Iterator[bool]:
    """Applies autocast to the experts' products on CUDA within the block; yields whether the model has such experts."""
    config = model.config
    if any(getattr(each, "_experts_implementation", None) != LIBRARY for each in (config, config.get_text_config())):
        yield False
        return
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(NAME, experts_forward)
    model.set_experts_implementation(NAME)
    try:
        yield True
    finally:
        model.set_experts_implementation(LIBRARY)


def experts_forward(module: nn.Module, h_TD: torch.Tensor, *routing: torch.Tensor) -> torch.Tensor:
    """transformers' forward of a layer's experts for T tokens: (T, D), in the dtype of `h_TD`.

    Args:
        module: holds the stacked weights of the experts.
        routing: each token's experts and their weights.
    """
    from transformers.integrations.moe import grouped_mm_experts_forward

    dtype = compute_dtype(h_TD.device.type)
    if dtype is None:
        return grouped_mm_experts_forward(module, h_TD, *routing)
    output_TD = grouped_mm_experts_forward(_Cast(module, dtype), h_TD.to(dtype), *routing)
    return output_TD.to(h_TD.dtype)


def compute_dtype(device: str) -> torch.dtype | None:
    """Returns autocast's dtype on this type of device; None to keep the tensors' own."""
    return torch.get_autocast_dtype(device) if device != "cpu" and torch.is_autocast_enabled(device) else None


class _Cast:
    """A view of a module that returns its floating-point weights in another dtype."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        cast = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(self._dtype) if cast else value
