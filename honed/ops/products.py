"""Float32 matrix products on the CPU by the faster of the two libraries that ship with torch.

torch uses MKL, which does not use AVX-512 on processors that are not Intel's. oneDNN does: 200 GFLOP/s against 90 on a
Zen 5 core. Both sum float32 products in float32, in different orders.

Within `fast_linears` a model's linear layers use oneDNN, forward and backward. Other processors, devices and dtypes,
autocast and small products keep torch's own path. The choice depends only on the processor and the shapes, so a resumed
run computes the same bits.

Shapes: M rows (any leading shape), I input and O output features, K the dimension that is summed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Below so many multiplications, the call and compiling oneDNN's code for another shape cost more than they save.
MIN_MULTIPLICATIONS = 1 << 23
# Elements of a product that are computed and added at a time, to stay within the processor's cache: 8 MB.
PART_ELEMENTS = 1 << 21
# The default of both caches is 1024 shapes of a few MB each, and the lengths of flat batches never repeat. A step needs
# a dozen shapes, with LoRA three dozen.
CACHED_SHAPES = "64"
CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype of a product with this tensor: its own, or autocast's if enabled and the tensor is not float64."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def linear(x_MI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """The product, shape (..., O). For functions that define their own backward: autograd does not record it."""
    return _onednn(x_MI, weight_OI, bias_O) if _pays(x_MI, weight_OI, bias_O) else F.linear(x_MI, weight_OI, bias_O)


def mm(a_MK: torch.Tensor, b_KN: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """The product, shape (M, N), not recorded by autograd either. `out` may be used, but need not be."""
    if _pays(a_MK, b_KN.t()):
        if a_MK.is_contiguous():
            return _onednn(a_MK, b_KN.t())
        product_MN = a_MK.new_empty(len(a_MK), b_KN.shape[1])
        for part, rows_mN in _by_parts(a_MK, b_KN):
            product_MN[part] = rows_mN
        return product_MN
    return torch.mm(a_MK, b_KN) if out is None else torch.mm(a_MK, b_KN, out=out)


def add_mm(sum_MN: torch.Tensor, a_MK: torch.Tensor, b_KN: torch.Tensor) -> None:
    """Adds the product to `sum_MN`, in place."""
    if not _pays(a_MK, b_KN.t()):
        sum_MN.addmm_(a_MK, b_KN)
        return
    for part, rows_mN in _by_parts(a_MK, b_KN):
        sum_MN[part].add_(rows_mN)


def _by_parts(a_MK: torch.Tensor, b_KN: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The product, some rows at a time: oneDNN copies non-contiguous inputs, and this limits the size of the copy."""
    rows = max(1, PART_ELEMENTS // b_KN.shape[1])
    for start in range(0, len(a_MK), rows):
        part = slice(start, start + rows)
        yield part, _onednn(a_MK[part], b_KN.t())


@contextmanager
def fast_linears(model: nn.Module) -> Iterator[int]:
    """Within the block, the model's plain linear layers use oneDNN where it is faster; yields their number.

    The layers stay the same objects, with their parameters, hooks and names; only their class changes until the block
    ends. So `isinstance(layer, nn.Linear)` holds meanwhile, but `type(layer) is nn.Linear` does not. Copies, pickles
    and saved files contain plain layers.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear] if onednn_is_faster() else []
    try:
        for layer in layers:
            layer.__class__ = FastLinear
        yield len(layers)
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear


class FastLinear(nn.Linear):
    """A linear layer whose large products go through oneDNN, in the forward and the backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, shape (..., O)."""
        if torch.compiler.is_compiling() or not _pays(x, self.weight, self.bias):
            return super().forward(x)
        output: torch.Tensor = _Linear.apply(x, self.weight, self.bias)
        return output

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are plain layers: they outlive the block and must load without honed."""
        return object.__new__, (nn.Linear,), self.__dict__


PLAIN = {nn.Linear, FastLinear}


@cache
def onednn_is_faster() -> bool:
    """Whether the processor has AVX-512 and is not Intel's, and torch has oneDNN but would use MKL."""
    faster = (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not _made_by_intel()
    )
    if faster:
        for name in CACHES:  # oneDNN reads them when it is first used
            os.environ.setdefault(name, CACHED_SHAPES)
    return faster


def _made_by_intel() -> bool:
    facts = Path("/proc/cpuinfo")
    return not facts.exists() or "GenuineIntel" in facts.read_text(encoding="utf-8", errors="replace")


def _pays(x_MI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> bool:
    return (
        x_MI.shape[:-1].numel() * weight_OI.numel() >= MIN_MULTIPLICATIONS
        and all(_suits(tensor) for tensor in (x_MI, weight_OI, bias_O) if tensor is not None)
        and not torch.is_autocast_enabled("cpu")
    )


def _suits(tensor: torch.Tensor) -> bool:
    """Plain tensors only: subclasses (sharded, quantised) have products of their own."""
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and type(tensor) in {torch.Tensor, torch.nn.Parameter}
        and onednn_is_faster()
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x_MI if for_weight else None, weight_OI if for_x else None)
        return _onednn(x_MI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_MO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_MI, weight_OI = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        dx_MI = dweight_OI = dbias_O = None
        if for_x:
            dx_MI = _onednn(dy_MO, weight_OI.t())
        dy_MO = dy_MO.reshape(-1, dy_MO.shape[-1])
        if for_weight:
            dweight_OI = _onednn(dy_MO.t(), x_MI.reshape(-1, x_MI.shape[-1]).t())
        if for_bias:
            dbias_O = dy_MO.sum(0)
        return dx_MI, dweight_OI, dbias_O


def _onednn(x_MI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """oneDNN reads weights in place, also transposed ones."""
    output_MO: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_MI, weight_OI, bias_O, "none", [], "")
    return output_MO
