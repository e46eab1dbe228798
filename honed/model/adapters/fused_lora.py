"""Computes peft's LoRA layers as one function (`honed.ops.lora`), with peft's parameters and methods unchanged.

Each layer is replaced in its parent by a stand-in whose class derives from the layer's and which shares the layer's
`__dict__`. So parameter names, hooks and peft's methods (`set_adapter`, `disable_adapter`, `merge`, `save_pretrained`)
work as before; only `forward` differs. It checks the layer's state in each call and falls back to peft's forward.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from honed.ops.lora import add_low_rank, lora_linear
from honed.ops.products import PLAIN

# peft's layers with plain or bitsandbytes weights, or on a named weight; other kinds have their own kernels.
KINDS = {"peft.tuners.lora.layer": ("Linear", "ParamWrapper"), "peft.tuners.lora.bnb": ("Linear4bit", "Linear8bitLt")}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def fused_lora(model: nn.Module) -> Iterator[int]:
    """Computes the model's LoRA layers as one function within the block; yields their number. Blocks may be nested."""
    kinds = {kind: type(f"Fused{kind.__name__}", (FusedForward, kind), {"kind": kind}) for kind in _loaded_kinds()}
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in kinds and _is_linear(child)
    ]
    stand_ins = {id(layer): _stand_in(layer, kinds[type(layer)]) for _, _, layer in places}
    try:
        for parent, name, layer in places:
            setattr(parent, name, stand_ins[id(layer)])
        yield len(stand_ins)
    finally:
        for parent, name, layer in places:
            if getattr(parent, name, None) is stand_ins[id(layer)]:  # else peft has unloaded or merged it
                setattr(parent, name, layer)


def coverage(model: nn.Module) -> tuple[int, Counter[str]]:
    """Returns how many LoRA layers are computed as one function, and how many are left to peft, by reason."""
    base = getattr(sys.modules.get("peft.tuners.lora.layer"), "LoraLayer", ())
    kinds, fused, left = _loaded_kinds(), 0, Counter[str]()
    for layer in model.modules():
        if not isinstance(layer, base):
            continue
        known = (type(layer) in kinds or isinstance(layer, FusedForward)) and _is_linear(layer)
        reason = why_not(layer) if known else f"a kind of their own, {type(layer).__name__}"
        if reason is None:
            fused += 1
        else:
            left[reason] += 1
    return fused, left


def why_not(layer: Any) -> str | None:
    """Returns why a layer of a known kind is left to peft in its current state; None if it is not."""
    if layer.disable_adapters or layer.merged:
        return "adapters switched off or merged"
    active = _active(layer)
    if len(active) != 1:
        return f"{len(active)} adapters active at once"
    name = active[0]
    if name in layer.lora_variant:
        return f"the variant {type(layer.lora_variant[name]).__name__.removesuffix('LinearVariant')}"
    if not layer.cast_input_dtype_enabled:
        return "casts switched off"
    return _why_not_with([layer.lora_A[name], layer.lora_B[name]])


def _why_not_with(parts: list[nn.Module]) -> str | None:
    if any(type(part) not in PLAIN or type(part.weight) is not nn.Parameter for part in parts):
        return "adapter weights that are wrapped or sharded"
    if any(part.bias is not None for part in parts):
        return "lora_bias"
    return "hooks on the adapter's parts" if any(map(_has_hooks, parts)) else None


if TYPE_CHECKING:
    _Layer = Any
else:
    _Layer = object


class FusedForward(_Layer):
    """The methods of a stand-in that replace those of peft's layer."""

    kind: type

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's output, shape (..., O)."""
        compiling = torch.compiler.is_compiling()
        if args or kwargs or why_not(self) is not None or (compiling and not hasattr(self, "parameter_name")):
            plain: torch.Tensor = super().forward(x, *args, **kwargs)
            return plain
        if compiling:  # peft's forward of a named weight modifies the layer, which cannot be compiled
            return self._plainly(x)
        [name] = _active(self)
        base, scaling = self.base_layer, self.scaling[name]
        a_RI, b_OR = self.lora_A[name].weight, self.lora_B[name].weight
        dropout = self.lora_dropout[name]
        drops = dropout.training and getattr(dropout, "p", 0.0) > 0.0
        dropped = dropout(self._cast_input_dtype(x, a_RI.dtype)) if drops else None
        if _is_dense(base, x, a_RI):
            return lora_linear(x, base.weight, base.bias, a_RI, b_OR, scaling=scaling, dropped_MI=dropped)
        return add_low_rank(base(x), x if dropped is None else dropped, a_RI, b_OR, scaling=scaling)

    def _plainly(self, x: torch.Tensor) -> torch.Tensor:
        [name] = _active(self)
        a, b = self.lora_A[name], self.lora_B[name]
        base: torch.Tensor = self.base_layer(x)
        return base + (b(a(self._cast_input_dtype(x, a.weight.dtype))) * self.scaling[name]).to(base.dtype)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are peft's layers."""
        return object.__new__, (self.kind,), self.__dict__


def _loaded_kinds() -> set[type]:
    """Returns the classes in `KINDS` without imports: a model has no layers of a module that is not loaded."""
    modules = ((sys.modules.get(module), names) for module, names in KINDS.items())
    found = (getattr(module, name, None) for module, names in modules for name in names)
    return {kind for kind in found if kind is not None}


def _stand_in(layer: nn.Module, kind: type) -> nn.Module:
    stand_in: nn.Module = object.__new__(kind)
    object.__setattr__(stand_in, "__dict__", layer.__dict__)
    return stand_in


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _is_linear(layer: Any) -> bool:
    """Whether it adapts a linear layer; `ParamWrapper` adds B A to any weight."""
    return not hasattr(layer, "parameter_name") or (
        type(layer.base_layer) in PLAIN and layer.parameter_name == "weight"
    )


def _is_dense(base: Any, x: torch.Tensor, a_RI: torch.Tensor) -> bool:
    """Whether the base is a frozen plain matrix and all dtypes match, possibly through autocast."""
    if type(base) not in PLAIN or _has_hooks(base):
        return False
    weight = base.weight
    if weight.requires_grad or type(weight) not in {nn.Parameter, torch.Tensor}:
        return False
    formats = {x.dtype, weight.dtype, a_RI.dtype}
    return len(formats) == 1 or (torch.is_autocast_enabled(x.device.type) and torch.float64 not in formats)


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in HOOKS) or "forward" in vars(module)
