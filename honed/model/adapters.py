"""Adapters: attached through peft, in peft's own format."""

from __future__ import annotations

import copy
from typing import Any

from honed.errors import ModelError


def lora_config(
    *, r: int = 16, alpha: int = 32, dropout: float = 0.0, target_modules: str | list[str] = "all-linear"
) -> Any:
    """LoRA on the named layers (Hu et al., arXiv:2106.09685), on every linear layer but the head unless told."""
    from peft import LoraConfig

    return LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=target_modules, task_type="CAUSAL_LM")


def attach(model: Any, peft_config: Any) -> Any:
    """The model with a new adapter; the configuration passed in is not changed.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    from peft import get_peft_model

    if hasattr(model, "get_base_model") or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "The model has an adapter already, and peft_config asks for another.",
            fix="pass the peft model without peft_config to go on training it, or merge it first",
        )
    try:
        return get_peft_model(model, copy.deepcopy(peft_config))
    except ValueError as error:
        raise ModelError(
            f"The adapter does not fit the model: {error}", fix="check r, dropout and target_modules"
        ) from None


def load_with_adapter(folder: str, *, device: Any, **options: Any) -> Any:
    """The base model that the adapter's folder names, with the adapter on it, ready for generation.

    Raises:
        ModelError: the adapter or its base model cannot be loaded.
    """
    from peft import PeftConfig, PeftModel

    from honed.model.load import first_line, load_model

    try:
        base = PeftConfig.from_pretrained(folder).base_model_name_or_path
        model = load_model(str(base), device=device, trains_all=False, **options)
        return PeftModel.from_pretrained(model, folder)
    except ModelError:
        raise
    except Exception as error:  # garbled JSON, a truncated file, another model's shapes: each its own kind
        raise ModelError(
            f"The adapter in {folder} could not be loaded: {first_line(error)}",
            fix="train it again, or restore its files",
        ) from None
