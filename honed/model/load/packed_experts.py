"""Experts in 4 bits: transformers 5 stacks them in three-dimensional weights, which bitsandbytes does not quantise.

They are packed one by one while the model is loaded, so that they are never all in memory unpacked. A packed weight
looks like a tensor of the original shape and dtype to models, peft and autograd. The operation that reads it unpacks
it; what autograd keeps for the backward pass stays packed.

    E experts of a layer;  I, O inputs and outputs of an expert
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from honed.errors import ModelError

METHOD = "honed_4bit_with_experts"
aten = torch.ops.aten


class PackedWeight(torch.Tensor):
    """A frozen weight (E, O, I) in 4 bits, or its view with the last two dimensions swapped.

    Args:
        packed: uint8, two values in each.
        state: bitsandbytes' `QuantState`: shape, dtype and scales.
        swapped: whether this is the view with swapped dimensions.
    """

    @staticmethod
    def __new__(cls, packed: torch.Tensor, state: Any, *, swapped: bool = False) -> PackedWeight:
        experts, rows, columns = state.shape
        shape, strides = (experts, rows, columns), (rows * columns, columns, 1)
        if swapped:
            shape, strides = (experts, columns, rows), (rows * columns, 1, columns)
        make = torch.Tensor._make_wrapper_subclass
        return make(cls, shape, strides=strides, dtype=state.dtype, device=packed.device)

    def __init__(self, packed: torch.Tensor, state: Any, *, swapped: bool = False) -> None:
        self.packed, self.state, self.swapped = packed, state, swapped

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedWeight(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    def unpacked(self) -> torch.Tensor:
        """Returns the dequantised values."""
        from bitsandbytes.functional import dequantize_4bit

        weight_EOI = dequantize_4bit(self.packed, self.state)
        return weight_EOI.transpose(-2, -1) if self.swapped else weight_EOI

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        own = args[0] if args and isinstance(args[0], cls) else None
        if own is not None and func in (aten.detach.default, aten.alias.default):
            return cls(own.packed, own.state, swapped=own.swapped)
        if own is not None and func is aten.clone.default:
            return cls(own.packed.clone(), own.state, swapped=own.swapped)
        if own is not None and func is aten.transpose.int and {dim % 3 for dim in args[1:3]} == {1, 2}:
            return cls(own.packed, own.state, swapped=not own.swapped)
        if (
            own is not None and func is aten.set_.source_Tensor and args[1].shape == own.shape
        ):  # torch's parametrization
            own.packed, own.state, own.swapped = args[1].packed, args[1].state, args[1].swapped
            return own
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        if any(argument.is_write and isinstance(given.get(argument.name), cls) for argument in func._schema.arguments):
            raise ModelError("Experts in 4 bits cannot be written to.", fix="leave +experts out of quantization")
        plain = torch.utils._pytree.tree_map_only(cls, cls.unpacked, (args, kwargs))
        return func(*plain[0], **plain[1])


def pack(weight_EOI: torch.Tensor, *, kind: str, twice: bool) -> PackedWeight:
    """Quantises the weight to 4 bits.

    Args:
        kind: "nf4" or "fp4".
        twice: whether its scales are quantised too.
    """
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight_EOI.contiguous(), quant_type=kind, compress_statistics=twice)
    return PackedWeight(packed, state)


def is_stack(name: str, weight: Any) -> bool:
    """Whether a weight holds all experts of a layer: (E, O, I), or (E, I, O) in some models."""
    owner, _, own = name.rpartition(".")
    return weight.ndim == 3 and "expert" in owner and "bias" not in own and weight.is_floating_point()


def unpack(model: nn.Module) -> None:
    """Converts packed experts into ordinary weights, in place."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if isinstance(weight, PackedWeight):
                setattr(module, name, nn.Parameter(weight.unpacked(), requires_grad=False))


def experts_config(**options: Any) -> Any:
    """Returns a `BitsAndBytesConfig` with these options that also packs stacked experts."""
    from transformers import BitsAndBytesConfig

    _register()
    config = BitsAndBytesConfig(**options)
    config.quant_method = METHOD
    return config


@cache
def _register() -> None:
    """Registers the quantizer with transformers, which imports bitsandbytes for it."""
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers.auto import register_quantizer
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.utils.quantization_config import QuantizationMethod

    @register_quantizer(METHOD)
    class WithExperts(Bnb4BitHfQuantizer):
        def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
            stacked = is_stack(param_name, model.get_parameter_or_buffer(param_name))
            return stacked or super().param_needs_quantization(model, param_name, **options)

        def get_quantize_ops(self) -> Any:
            return PackOrQuantize(super().get_quantize_ops(), self.quantization_config)

        def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
            model.quantization_method = QuantizationMethod.BITS_AND_BYTES  # what other libraries check
            self.quantization_config.quant_method = QuantizationMethod.BITS_AND_BYTES
            return super()._process_model_after_weight_loading(model, **options)

        def is_serializable(self) -> bool:
            return False

    class PackOrQuantize(ConversionOps):
        def __init__(self, linear: Any, config: Any) -> None:
            self.linear, self.config = linear, config

        def convert(self, input_dict: dict[str, Any], *, model: Any = None, **options: Any) -> dict[str, Any]:
            result = {}
            for name, value in input_dict.items():
                if is_stack(name, model.get_parameter_or_buffer(name)):
                    weight_EOI = value[0] if isinstance(value, list) else value
                    kind, twice = self.config.bnb_4bit_quant_type, self.config.bnb_4bit_use_double_quant
                    result[name] = nn.Parameter(pack(weight_EOI, kind=kind, twice=twice), requires_grad=False)
                else:
                    result |= self.linear.convert({name: value}, model=model, **options)
            return result
