"""Quantised base models: their quantization config, and what they need to train an adapter.

A quantised base is frozen: gradients pass through its weights but not into them (QLoRA, Dettmers et al.,
arXiv:2305.14314). Embeddings, norms and LM head keep the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from honed.errors import MissingExtraError, ModelError
from honed.model.load.packed_experts import PackedWeight, experts_config, is_stack, unpack
from honed.recipe import PLUS_EXPERTS

KINDS = ("nf4", "fp4", "int8", f"nf4{PLUS_EXPERTS}", f"fp4{PLUS_EXPERTS}")
OLD_KEYWORDS = ("load_in_4bit", "load_in_8bit")
COMPANIONS = ("bnb_4bit_", "llm_int8_")


def quantization_config(kind: str, *, dtype: torch.dtype | str) -> Any:
    """Returns the `BitsAndBytesConfig` for a short name.

    Args:
        kind: "nf4" or "fp4" (4 bits with double quantisation), "int8" (LLM.int8(), arXiv:2208.07339); "nf4+experts" or
            "fp4+experts" to include stacked experts (see `honed.model.load.packed_experts`).
        dtype: compute dtype for 4 bits.

    Raises:
        ModelError: the kind is unknown.
        MissingExtraError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if kind not in KINDS:
        raise ModelError(f"quantization is {kind!r}.", fix=f"known are {', '.join(KINDS)}")
    need_bitsandbytes()
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    make = experts_config if kind.endswith(PLUS_EXPERTS) else BitsAndBytesConfig
    return make(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind.removesuffix(PLUS_EXPERTS),
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def asks_for_bits(options: Mapping[str, Any]) -> bool:
    """Whether keyword arguments of `from_pretrained` request a quantised model."""
    return options.get("quantization_config") is not None or any(options.get(key) for key in OLD_KEYWORDS)


def with_quantization_config(options: Mapping[str, Any], *, dtype: torch.dtype | str) -> dict[str, Any]:
    """Combines `load_in_4bit=True`, `bnb_4bit_quant_type=...` and the like into one `quantization_config`.

    transformers 5 no longer accepts the short form. The default compute dtype is `dtype`, not bitsandbytes' float32.

    Raises:
        ModelError: both forms are given.
        MissingExtraError: bitsandbytes is not installed.
    """
    short = {key: value for key, value in options.items() if key in OLD_KEYWORDS or key.startswith(COMPANIONS)}
    rest = {key: value for key, value in options.items() if key not in short}
    if rest.get("quantization_config") is None:
        rest.pop("quantization_config", None)
    if any(short.get(key) for key in OLD_KEYWORDS):
        if "quantization_config" in rest:
            raise ModelError("load_in_4bit/load_in_8bit and quantization_config are both given.", fix="give one")
        from transformers import BitsAndBytesConfig

        need_bitsandbytes()
        rest["quantization_config"] = BitsAndBytesConfig(**{"bnb_4bit_compute_dtype": dtype, **short})
    elif _is_bitsandbytes(rest.get("quantization_config")):
        need_bitsandbytes()
    return rest


def quantized_options(options: Mapping[str, Any] | None, config: Any) -> dict[str, Any]:
    """Adds this `quantization_config` to keyword arguments of `from_pretrained`.

    Raises:
        ModelError: the keyword arguments already request quantisation.
    """
    if config is None:
        return dict(options or {})
    if options and asks_for_bits(options):
        raise ModelError("The model is quantised twice: by keywords, and by a configuration.", fix="give one of them")
    return {**(options or {}), "quantization_config": config}


def need_bitsandbytes() -> None:
    """Raises MissingExtraError if the package is not installed."""
    if find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "quant")


def is_quantized(model: Any) -> bool:
    """Whether the weights of a transformers model, inside a peft model or not, are quantised."""
    return bool(getattr(model, "is_quantized", False))


def keep_differentiable(model: Any) -> None:
    """Keeps 4-bit layers on the CPU in the layout that has a backward pass; does nothing on other devices.

    On CPUs with AVX512-BF16 a bitsandbytes layer repacks its weight in its first forward pass in eval mode. The kernel
    for that layout has no backward pass (0.50.2 warns and returns no gradient), so one evaluation would break all later
    training; and packing irreversibly rounds the scales to bfloat16. Layers of gptqmodel 7.6 (GPTQ, AWQ) do the same on
    any CPU, without a warning.

    Raises:
        ModelError: a layer is already packed.
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        mode = getattr(module, "linear_mode", "")  # gptqmodel's; None until the first forward
        if getattr(state, "packing_format_for_cpu", False) or mode == "inference":
            raise ModelError(
                "The model's 4-bit weights have been packed for inference, which cannot be undone without loss.",
                fix="reload the model with honed.load_model, or run nothing on it before it is trained",
            )
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if mode is None:
            module.linear_mode = "train"


def into_one_format(model: Any, dtype: torch.dtype) -> None:
    """Converts weights of other dtypes to `dtype`, except those that the model itself keeps in float32.

    If transformers 5.23 dequantises an fp8 folder while loading (always without an fp8 GPU), weights that were not
    quantised keep the file's dtype, and the first product of two dtypes fails.
    """
    kept = [*(getattr(model, "_keep_in_fp32_modules", None) or ())]
    kept += getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dtype != dtype and not any(part in name for part in kept):
            weight.data = weight.data.to(dtype)


def notes_on_experts(model: Any) -> list[str]:
    """Returns a note if the layers of a model are quantised to 4 bits but its stacked experts are not."""
    plain = [p for name, p in model.named_parameters() if is_stack(name, p) and not isinstance(p, PackedWeight)]
    if not plain or not getattr(model, "is_loaded_in_4bit", False):
        return []
    count, size = sum(p.numel() for p in plain), sum(p.numel() * p.element_size() for p in plain)
    return [
        f"{count:,} numbers in stacked experts are not quantised and take {size / 1e9:,.1f} GB; "
        f"quantization='nf4{PLUS_EXPERTS}' packs them, too"
    ]


def packed_layers(model: Any) -> list[str]:
    """Returns the last parts of the names of layers with packed weights (GPTQ, AWQ), ignored by peft's "all-linear"."""
    layers = [
        name for name, module in model.named_modules() if isinstance(getattr(module, "qweight", None), torch.Tensor)
    ]
    return sorted({name.rpartition(".")[-1] for name in layers})


def refuse_compressed(model: Any) -> None:
    """Refuses a base in compressed-tensors format (`honed export --gptq`, most AWQ and fp8 models).

    Its layers have no weights before the first forward pass, so peft fails, and no gradient passes through the rounding
    of activations.

    Raises:
        ModelError: the model is compressed; the fix is to dequantise it.
    """
    if getattr(getattr(model, "quantization_method", None), "value", "") == "compressed-tensors":
        raise ModelError(
            "The model's weights are compressed (compressed-tensors), and no gradient passes through them as they are.",
            fix="load it with quantization_config=transformers.CompressedTensorsConfig(dequantize=True)",
        )


def dequantized(model: Any, dtype: torch.dtype) -> Any:
    """Converts the quantised model into an ordinary one in this dtype.

    Args:
        model: must not be used afterwards.

    Raises:
        ModelError: the quantisation method cannot be undone.
    """
    keep_differentiable(model)
    unpack(model)
    try:
        return model.dequantize(dtype=dtype).to(dtype)
    except (NotImplementedError, TypeError, ValueError) as error:
        method = getattr(getattr(model, "quantization_method", None), "value", "unknown")
        raise ModelError(
            f"A base quantised by {method} cannot be dequantised: {error}",
            fix="merge into the base model before it was quantised",
        ) from None


def _is_bitsandbytes(config: Any) -> bool:
    known = config.to_dict() if hasattr(config, "to_dict") else (config or {})
    return any(known.get(key) for key in OLD_KEYWORDS)
