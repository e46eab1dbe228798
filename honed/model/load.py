"""A model's name or folder -> model and tokenizer, with the number format that suits the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from honed.errors import ModelError
from honed.model.device import pick_dtype
from honed.model.smollm2 import MODEL_NAME as DEFAULT_MODEL
from honed.model.smollm2 import resolve_default_model


def resolve(name: str) -> str:
    """The folder or Hub id behind a model's name.

    Raises:
        ModelError: a path that does not exist, or a folder without a model.
    """
    if name == DEFAULT_MODEL:
        return str(resolve_default_model())
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
            raise ModelError(f"{name} holds no model: there is no config.json in it.", fix="name the folder of a model")
        return str(path.absolute())  # an adapter records it, and is loaded from other places
    looks_like_path = (
        name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix in {".gguf", ".safetensors"}
    )
    if looks_like_path:
        raise ModelError(
            f"No such model folder: {name}",
            fix=f"name a folder in transformers format, a Hub id (owner/name), or {DEFAULT_MODEL}",
        )
    return name


def load_tokenizer(name: str, **options: Any) -> Any:
    """The tokenizer of a model.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    folder = resolve(name)
    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # transformers raises many kinds for a missing or broken tokenizer
        raise ModelError(
            f"No tokenizer could be loaded from {name}: {first_line(error)}",
            fix="put tokenizer.json and tokenizer_config.json into the model's folder, or pass processing_class=",
        ) from None


def load_model(
    name: str, *, device: torch.device, dtype: torch.dtype | str | None = None, trains_all: bool = True, **options: Any
) -> Any:
    """A causal language model on the device.

    Args:
        name: a folder, a Hub id, or the default model's name.
        device: where it goes, unless `device_map` is among the options.
        dtype: number format, as a torch dtype or its name; None picks one: float32 for weights that are trained (their
            updates are too small for bfloat16), else what the device is good at.
        trains_all: whether the model's own weights are trained (full fine-tuning).
        options: keywords of `from_pretrained`.

    Raises:
        ModelError: the model cannot be found or loaded, or is an adapter.
    """
    from transformers import AutoModelForCausalLM

    from honed.model.minimind import register

    register()
    folder = resolve(name)
    if is_adapter(folder):
        raise ModelError(
            f"{name} holds an adapter, not a whole model.",
            fix="name the model that it was trained on, or merge it into that one first (peft: merge_and_unload)",
        )
    old_name = options.pop("torch_dtype", None)
    chosen = dtype if dtype is not None else old_name
    if chosen is None:
        chosen = torch.float32 if trains_all else pick_dtype(device)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=chosen, **options)
    except Exception as error:
        # a wrong name, a missing file, a truncated shard and an unknown architecture each raise their own kind
        raise ModelError(
            f"The model {name} could not be loaded: {first_line(error)}",
            fix="check the name, the folder's files and the network",
        ) from None
    return model if "device_map" in options or "quantization_config" in options else model.to(device)


def load_for_generation(name: str, *, device: torch.device, dtype: torch.dtype | str | None = None) -> tuple[Any, Any]:
    """Model and tokenizer of a run's folder (adapter or whole model) or of any model, ready to generate.

    Raises:
        ModelError: there is none, or its base model is gone.
    """
    from transformers import GenerationConfig

    from honed.model.adapters import load_with_adapter

    folder = resolve(name)
    tokenizer = load_tokenizer(folder)
    adapted = is_adapter(folder)
    load = load_with_adapter if adapted else load_model
    options: dict[str, Any] = {} if adapted else {"trains_all": False}
    model = load(folder, device=device, dtype=dtype, **options).eval()
    if adapted and (Path(folder) / "generation_config.json").exists():
        # peft takes the base model's; the stop tokens that were trained stand in the run's own
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, tokenizer


def is_adapter(folder: str) -> bool:
    """Whether a folder holds an adapter alone."""
    return (Path(folder) / "adapter_config.json").exists() and not (Path(folder) / "config.json").exists()


def first_line(error: BaseException) -> str:
    """The error's first line with words in it, with its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
