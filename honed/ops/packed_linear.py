"""Linear layers for generation on the CPU: weights laid out once as oneDNN's kernels want them, then used many times.

With a few rows per product, torch's float32 linear goes to MKL, which reads the weights as they lie. In oneDNN's own
layout the same product took half the time or less on the AMD cores at hand, and in bfloat16 two thirds. It costs a
second copy of the weights while the block lasts, so it is left out where memory is short.

Shapes: M rows of any leading shape, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from honed.ops.products import PLAIN

ROWS_HINT = 64  # the layout that oneDNN picks for this many rows is the fastest for 1 to 512 as well
DTYPES = (torch.float32, torch.bfloat16)
MEMORY_SHARE = 0.5  # of the free memory that the second copy may take


class PackedLinear(nn.Linear):
    """Stands in for a linear layer and shares its parameters; for use without gradients, while they do not change."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.training = linear.training
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS_HINT)

    def forward(self, x_MI: torch.Tensor) -> torch.Tensor:
        """The product, shape (..., O)."""
        output_MO: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_MI, self._packed, self.bias, "none", [], "")
        return output_MO


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[int]:
    """Within the block the model's plain linear layers are packed, where this machine can; afterwards it has its own.

    Yields how many layers are packed: 0 on other devices and formats, without oneDNN, or where memory is short.
    """
    places = _places(model) if torch.backends.mkldnn.is_available() else []
    if not places or not _has_room(places):
        yield 0
        return
    try:
        for parent, name, linear in places:
            setattr(parent, name, PackedLinear(linear))
        yield len(places)
    finally:
        for parent, name, linear in places:
            setattr(parent, name, linear)


def _places(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Where plain linear layers hang; subclasses (quantised, adapters) have kernels of their own."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
        and type(child) in PLAIN
        and child.weight.device.type == "cpu"
        and child.weight.dtype in DTYPES
    ]


def _has_room(places: list[tuple[nn.Module, str, nn.Linear]]) -> bool:
    import psutil

    size = sum(linear.weight.numel() * linear.weight.element_size() for _, _, linear in places)
    return bool(size < MEMORY_SHARE * psutil.virtual_memory().available)
