"""Loads a trained adapter or model: with its tokenizer for generation, or an adapter alone to train it further."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from honed.errors import ModelError, RecipeError, first_line
from honed.model.adapters.adapters import load_with_adapter
from honed.model.load.load import is_adapter, load_model, load_tokenizer, resolve
from honed.recipe import LoraRecipe, Recipe, load_recipe


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


def as_new_adapter(recipe: Recipe) -> Recipe:
    """Returns the recipe with the base and the options of the adapter that its `model` names: what it trains further.

    The recipe itself if its model is no adapter.

    Raises:
        ModelError: there is no such model, or the adapter's configuration cannot be read.
        RecipeError: it is no LoRA adapter, or the recipe asks for other options than the adapter has.
    """
    from peft import PeftConfig

    folder = resolve(recipe.model)
    if not is_adapter(folder):
        return recipe
    merge = f"merge it into its base first: honed export {recipe.model} MERGED"
    if recipe.lora is None:
        raise RecipeError(
            f"lora is null, but {recipe.model} holds an adapter.",
            fix=f"leave lora=null out to train the adapter further, or {merge}",
        )
    try:
        config = PeftConfig.from_pretrained(folder)
    except Exception as error:  # corrupt JSON and unknown methods raise different types
        raise ModelError(
            f"The adapter in {recipe.model} cannot be read: {first_line(error)}", fix="restore its files"
        ) from None
    if config.peft_type != "LORA":
        raise RecipeError(
            f"{recipe.model} holds an adapter of the method {config.peft_type.value}; recipes train LoRA.", fix=merge
        )
    bits = trained_on(folder)
    if bits is not None and recipe.quantization is None:
        raise RecipeError(
            f"The adapter in {recipe.model} was trained on a base in {bits}, and quantization is not set.",
            fix=f"set quantization={bits}",
        )
    lora = _lora_of(config)
    _refuse_other_options(recipe.lora, lora, recipe.model, merge)
    return dataclasses.replace(recipe, model=str(config.base_model_name_or_path), lora=lora)


def _lora_of(config: Any) -> LoraRecipe:
    """Returns peft's configuration as a recipe's `lora` section; its weights are there, so `init` is the default."""
    named = {"alpha": "lora_alpha", "dropout": "lora_dropout"}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(LoraRecipe):
        value = getattr(config, named.get(field.name, field.name), field.default)
        found[field.name] = tuple(sorted(value)) if isinstance(value, set | list) else value
    return LoraRecipe(**found)


def _refuse_other_options(asked: LoraRecipe, has: LoraRecipe, name: str, merge: str) -> None:
    """Refuses options that are set in the recipe (not the defaults) and that the adapter does not have."""
    for option, value in dataclasses.asdict(asked).items():
        wanted = tuple(sorted(value)) if isinstance(value, tuple) else value
        if wanted not in (getattr(LoraRecipe(), option), getattr(has, option)):
            raise RecipeError(
                f"lora.{option} is {value!r:.80}, but the adapter in {name} has {getattr(has, option)!r:.80}.",
                fix=f"leave it out to train the adapter further as it is; for a new adapter, {merge}",
            )
