"""Detects the class of the base model that an adapter was trained on: text only, or with images.

Qwen3.5, Llama 4 and some others have both, and name their layers differently: `model.layers` and
`model.language_model.layers`. If an adapter's layers are not found, peft only warns and uses an untrained adapter.
"""

from __future__ import annotations

from pathlib import Path

from honed.model.load.load import load_config, sees_images


def trained_seeing(folder: str, base: str) -> bool:
    """Whether more of the adapter's layers exist in the base's class with images than in its text-only class.

    False if the base has only one class, or the adapter's layers cannot be read from a safetensors file.

    Args:
        folder: the adapter's folder.
        base: name or folder of the model that it was trained on.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if not sees_images(base):
        return False
    config = load_config(base)
    seeing = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    speaking = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    layers = _layers_in(folder)
    if speaking in (None, seeing) or not layers:
        return False
    with torch.device("meta"):
        models = (seeing._from_config(config), speaking._from_config(config.get_text_config()))
    found = [len(layers & {name for name, _ in model.named_modules()}) for model in models]
    return found[0] > found[1]


def _layers_in(folder: str) -> set[str]:
    """Returns the names of the layers that have LoRA matrices in the adapter's file."""
    from safetensors import safe_open

    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        return set()
    with safe_open(file, framework="pt") as weights:
        keys = list(weights.keys())
    return {key.partition(".lora_")[0].removeprefix("base_model.model.") for key in keys if ".lora_" in key}
