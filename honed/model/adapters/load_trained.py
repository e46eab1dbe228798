"""Loads a trained adapter or model with its tokenizer for generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from honed.model.adapters.adapters import load_with_adapter
from honed.model.load.load import is_adapter, load_model, load_tokenizer, resolve
from honed.recipe import load_recipe


def load_for_generation(name: str, *, device: torch.device, dtype: torch.dtype | str | None = None) -> tuple[Any, Any]:
    """Loads model and tokenizer from a run's folder (adapter or whole model), or any model, for generation.

    Raises:
        ModelError: there is no such model, or its base model is missing.
    """
    from transformers import GenerationConfig

    folder = resolve(name)
    tokenizer = load_tokenizer(folder)
    adapted = is_adapter(folder)
    load = load_with_adapter if adapted else load_model
    options: dict[str, Any] = {"quantization": trained_on(folder)} if adapted else {"trains_all": False}
    model = load(folder, device=device, dtype=dtype, **options).eval()
    if adapted and (Path(folder) / "generation_config.json").exists():
        # peft uses the base model's, without the stop tokens that were trained.
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, tokenizer


def trained_on(folder: str) -> str | None:
    """Returns how the base of the adapter in this folder was quantised; None if it was not.

    Raises:
        RecipeError: the folder's recipe.yaml is invalid.
    """
    recipe = Path(folder) / "recipe.yaml"
    return load_recipe(recipe).quantization if recipe.is_file() else None
