"""A mixture's experts in autocast's format, like all other layers.

transformers multiplies all experts in one product, `grouped_mm`, which autocast does not know. Where weights are
float32 masters it stays in float32, and there CUDA has no grouped kernel: torch reads the experts' borders back from
the device, for each product of each layer, and multiplies expert by expert. Within `experts_in_autocast` the same
function of transformers gets its weights in autocast's format.

On a CPU, where float32 products may be the faster ones, nothing is changed.
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
    """Within the block the experts' products follow autocast on CUDA; yields whether the model has such experts."""
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
    """transformers' forward of all experts of a layer: (T, D), in the format of `h_TD`.

    Args:
        module: with the experts' weights, stacked.
        h_TD: T tokens of hidden size D.
        routing: the experts of each token, and what each counts.
    """
    from transformers.integrations.moe import grouped_mm_experts_forward

    dtype = compute_dtype(h_TD.device.type)
    if dtype is None:
        return grouped_mm_experts_forward(module, h_TD, *routing)
    output_TD = grouped_mm_experts_forward(_Cast(module, dtype), h_TD.to(dtype), *routing)
    return output_TD.to(h_TD.dtype)


def compute_dtype(device: str) -> torch.dtype | None:
    """Autocast's format on this type of device; None where the tensors' own is taken."""
    return torch.get_autocast_dtype(device) if device != "cpu" and torch.is_autocast_enabled(device) else None


class _Cast:
    """A module whose floating-point weights are read in another format."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        cast = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(self._dtype) if cast else value
