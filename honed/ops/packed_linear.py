"""Linear layers for generation on the CPU: weights packed once into the layout of oneDNN's kernels, used many times.

torch's float32 linear layer uses MKL, which reads the weights unpacked. For a few rows per product, oneDNN with packed
weights took half the time or less on AMD cores, and two thirds in bfloat16. The packed weights are a second copy, so
they are not made when memory is short.

Shapes: M rows of any leading shape, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from honed.ops.products import PLAIN

ROWS_HINT = 64  # the layout that oneDNN picks for 64 rows is the fastest for 1 to 512
MEMORY_SHARE = 0.5  # of the free memory, at most, for the second copy


class PackedLinear(nn.Linear):
    """Replaces a linear layer and shares its parameters, which must not change. It has no backward pass."""

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
    """Within the block, the model's plain linear layers are packed; afterwards the original layers are restored.

    Yields the number of packed layers: 0 on other devices and dtypes, without oneDNN, or when memory is short.
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
    """Parent, name and module of each plain linear layer; subclasses (quantised, adapters) have their own kernels."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
        and type(child) in PLAIN
        and child.weight.device.type == "cpu"
        and can_pack(child.weight.dtype)
    ]


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this dtype on this processor; bfloat16 needs AVX-512 or AVX-NE-CONVERT."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _has_room(places: list[tuple[nn.Module, str, nn.Linear]]) -> bool:
    import psutil

    size = sum(linear.weight.numel() * linear.weight.element_size() for _, _, linear in places)
    return bool(size < MEMORY_SHARE * psutil.virtual_memory().available)
