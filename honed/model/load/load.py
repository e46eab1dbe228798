"""Loads a model and its tokenizer by name or folder, in the dtype that suits the device."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from honed.errors import MissingExtraError, ModelError, RecipeError, first_line
from honed.hub import ask_for_model
from honed.model.device import pick_dtype
from honed.model.load import quantize
from honed.model.smollm2.smollm2 import MODEL_NAME as DEFAULT_MODEL
from honed.model.smollm2.smollm2 import resolve_default_model
from honed.quantities import counted

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")
NAMED = 4  # of the missing weights in a message


def resolve(name: str) -> str:
    """Returns the folder or Hub id for a model's name.

    Raises:
        ModelError: the path does not exist, or the folder has no model.
    """
    if name == DEFAULT_MODEL:
        return str(resolve_default_model())
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
            raise ModelError(f"{name} holds no model: there is no config.json in it.", fix=_model_near(path))
        return str(path.absolute())  # an adapter stores it, and may be loaded from another directory
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix in {".gguf", ".safetensors"}:
        raise ModelError(
            f"No such model folder: {name}",
            fix=f"name a folder in transformers format, a Hub id (owner/name), or {DEFAULT_MODEL}",
        )
    return name


def _model_near(folder: Path) -> str:
    """Returns the fix for a folder without a model: a model inside it, if there is one."""
    inside = sorted(folder.glob("*/config.json")) or sorted(folder.glob("*/adapter_config.json"))
    if inside:
        return f"name the folder of a model, such as {folder / inside[-1].parent.name}"
    if (folder / "run.json").is_file():
        return "this run has saved none: train it to its end (the same command resumes), or name a model's folder"
    return "name the folder of a model"


def resolve_tokenizer(name: str) -> str:
    """Returns the folder or Hub id for the name of a model, or of a tokenizer without a model.

    Raises:
        ModelError: see `resolve`.
    """
    place = Path(name).expanduser()
    alone = any((place / file).exists() for file in TOKENIZER_FILES)
    return str(place.absolute()) if alone else resolve(name)


def load_tokenizer(name: str, **options: Any) -> Any:
    """Loads the tokenizer of a model.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    folder = resolve_tokenizer(name)
    ask_for_model(folder, options)
    try:
        return AutoTokenizer.from_pretrained(folder, **{"trust_remote_code": False, **options})
    except Exception as error:  # transformers raises many types for a missing or broken tokenizer
        fix = "put tokenizer.json and tokenizer_config.json into the model's folder, or pass processing_class="
        if "not a valid JSON file" in str(error):
            fix = "restore that file"
        elif not Path(folder).is_dir():
            fix = f"check the name and the network, or name a folder; {DEFAULT_MODEL} needs no Hub"
        raise ModelError(f"No tokenizer could be loaded from {name}: {first_line(error)}", fix=fix) from None


def load_processor(name: str, **options: Any) -> Any:
    """Loads the processor of a vision-language model: its tokenizer and its image processor.

    Raises:
        ModelError: there is none, or it cannot be read.
        MissingExtraError: Pillow is not installed.
    """
    from importlib.util import find_spec

    from transformers import AutoProcessor

    if find_spec("PIL") is None:
        raise MissingExtraError("PIL", "vision")
    folder = resolve(name)
    ask_for_model(folder, options)
    try:
        processor = AutoProcessor.from_pretrained(folder, **{"trust_remote_code": False, **options})
    except Exception as error:  # a missing file or package: all of different types
        raise ModelError(
            f"No processor could be loaded from {name}: {first_line(error)}",
            fix="put the files of processor.save_pretrained into the model's folder, or pass processing_class=",
        ) from None
    if not hasattr(processor, "image_processor"):
        raise ModelError(
            f"{name} sees no images: what AutoProcessor finds there is a {type(processor).__name__}.",
            fix="name a vision-language model, or leave the images out",
        )
    return processor


def load_model(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype | str | None = None,
    trains_all: bool = True,
    with_vision: bool = False,
    quantization: str | None = None,
    **options: Any,
) -> Any:
    """Loads a causal language model onto the device.

    Args:
        name: a folder, a Hub id, or the default model's name.
        device: the device to load it on, unless the options contain `device_map`.
        dtype: a torch dtype or its name; None for float32 if the weights are trained (their updates are too small for
            bfloat16), else the device's fastest.
        trains_all: whether the model's own weights are trained (full fine-tuning).
        with_vision: also load the vision tower, if the folder can be loaded with and without it.
        quantization: "nf4", "fp4" or "int8"; see `honed.model.load.quantize`.
        options: keyword arguments for `from_pretrained`; `load_in_4bit=True` and the like also work.

    Raises:
        ModelError: the model cannot be found or loaded, or is an adapter.
        MissingExtraError: quantisation is requested, and its package is not installed.
    """
    from honed.model.minimind.minimind import register

    register()
    folder = resolve(name)
    if is_adapter(folder):
        raise ModelError(
            f"{name} holds an adapter, not a whole model.",
            fix="name the model that it was trained on, or merge it into that one first (honed export ADAPTER MERGED)",
        )
    ask_for_model(folder, options)
    options = {"trust_remote_code": False, **options}  # if unset, transformers asks on the terminal
    old_name = options.pop("torch_dtype", None)
    chosen = known_dtype(dtype if dtype is not None else old_name)
    quantised = quantization is not None or quantize.asks_for_bits(options)
    if chosen is None:
        chosen = torch.float32 if trains_all and not quantised else pick_dtype(device)
    if quantised:
        products = pick_dtype(device) if chosen == "auto" else chosen
        if quantization is not None:
            own = quantize.quantization_config(quantization, dtype=products)
            options = quantize.quantized_options(options, own)
        options = quantize.with_quantization_config({"device_map": {"": device}, **options}, dtype=products)
    try:
        found = model_class(folder, with_vision, options).from_pretrained(
            folder, dtype=chosen, output_loading_info=True, **options
        )
    except ImportError as error:  # mostly a quantisation package
        raise ModelError(f"The model {name} needs more packages: {first_line(error)}", fix="install them") from None
    except Exception as error:
        # A missing file, a truncated shard and an unknown architecture raise different types.
        code = "trust_remote_code" in str(error)  # transformers' message requests it
        raise ModelError(
            f"The model {name} could not be loaded: {first_line(error)}",
            fix="look at that code, then set trust_remote_code=True" if code else fix_of_loading(error, name),
        ) from None
    model, info = found
    refuse_missing_weights(name, model, info["missing_keys"])
    if quantize.is_quantized(model):
        quantize.keep_differentiable(model)
        return model
    if chosen != "auto":
        quantize.into_one_format(model, getattr(torch, chosen) if isinstance(chosen, str) else chosen)
    return model if "device_map" in options else model.to(device)


def fix_of_loading(error: Exception, name: str) -> str:
    """Returns what helps against an error of `from_pretrained`, by its type and text."""
    text = str(error)
    again = "copy its files again" if Path(name).expanduser().is_dir() else f"run `hf download {name}` with a network"
    if type(error).__name__ == "SafetensorError":
        return f"a weight file is cut off, or a Git LFS pointer without `git lfs pull`: {again}"
    if isinstance(error, FileNotFoundError) or "no file named" in text or "not appear to have a file named" in text:
        return f"the model is incomplete: {again}"
    if "does not recognize this architecture" in text:
        return "pip install -U transformers, or set trust_remote_code=True if the model ships its own code"
    return "check the name, the folder's files and the network"


def refuse_missing_weights(name: str, model: Any, missing: Iterable[str]) -> None:
    """Refuses a model some of whose weights are not in its files: transformers fills them with random numbers.

    Raises:
        ModelError: naming some of them.
    """
    weights = {weight for weight, _ in model.named_parameters()}
    absent = sorted(weights & set(missing))
    if absent and not quantize.is_quantized(model):
        raise ModelError(
            f"The files of {name} lack {counted(len(absent), 'weight')} of the model, which would be random numbers: "
            f"{', '.join(absent[:NAMED])}{', ...' if len(absent) > NAMED else ''}",
            fix="restore the files; to train new weights on purpose, load the model yourself and pass it to SFTTrainer",
        )


def known_dtype(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    """Returns the dtype unchanged if torch knows it or it is "auto".

    Raises:
        RecipeError: torch has no such dtype.
    """
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise RecipeError(f"dtype is {dtype!r}.", fix="set float32, bfloat16 or float16")
    return dtype


def load_config(name: str) -> Any:
    """Loads the configuration of a model without its weights.

    Raises:
        ModelError: there is no such model, or its configuration cannot be read.
    """
    from transformers import AutoConfig

    from honed.model.minimind.minimind import register

    register()
    folder = resolve(name)
    ask_for_model(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # missing and corrupt files raise different types
        raise ModelError(
            f"The configuration of {name} cannot be read: {first_line(error)}",
            fix="check the name, the folder's config.json and the network",
        ) from None


def sees_images(name: str) -> bool:
    """Whether the model (or an adapter's base) is a vision-language model; False if its configuration is unreadable."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    try:
        if is_adapter(folder := resolve(name)):
            name = json.loads((Path(folder) / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
        return type(load_config(name)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    except Exception:  # loading the model reports it
        return False


def model_class(folder: str, with_vision: bool, options: dict[str, Any]) -> Any:
    """Returns the Auto class for this folder: with images if requested, or if the model has no text-only class."""
    import transformers

    if with_vision:
        return transformers.AutoModelForImageTextToText
    known = {key: options[key] for key in ("trust_remote_code", "revision") if key in options}
    return class_of(transformers.AutoConfig.from_pretrained(folder, **known))


def class_of(config: Any) -> Any:
    """Returns the Auto class for this configuration: the text-only one, unless there is only one with images."""
    import transformers

    sees = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    speaks = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return transformers.AutoModelForImageTextToText if sees and not speaks else transformers.AutoModelForCausalLM


def is_adapter(folder: str) -> bool:
    """Whether a folder holds only an adapter."""
    return (Path(folder) / "adapter_config.json").exists() and not (Path(folder) / "config.json").exists()
