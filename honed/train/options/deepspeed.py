"""Reads DeepSpeed's configuration and refuses what cannot work."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.errors import RecipeError

if TYPE_CHECKING:
    from transformers import TrainingArguments


def zero_stage(args: TrainingArguments) -> int | None:
    """Returns ZeRO's stage, from the arguments or `accelerate launch`: 1 shards the optimizer's states, 2 also the
    gradients, 3 also the weights; None without DeepSpeed."""
    config = _config(args)
    return None if config is None else int(config.get_value("zero_optimization.stage", 0))


def need_deepspeed(config: Any) -> None:
    """Checks the value of `deepspeed` before transformers reads it.

    Raises:
        RecipeError: DeepSpeed is not installed, or a file cannot be read as JSON.
    """
    if not config:
        return
    if find_spec("deepspeed") is None:
        raise RecipeError("deepspeed is set, but DeepSpeed is not installed.", fix="pip install deepspeed")
    if not isinstance(config, str) or config.lstrip().startswith("{"):
        return
    path = Path(config)
    if not path.is_file():
        raise RecipeError(f"deepspeed: no such file: {config}", fix="name a JSON file with DeepSpeed's configuration")
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{config} cannot be read as JSON: {error}", fix="fix that file") from None


def check_deepspeed(args: TrainingArguments) -> None:
    """Checks the configuration against the arguments.

    Raises:
        RecipeError: they contradict each other.
    """
    told: list[str] = getattr(getattr(args, "hf_deepspeed_config", None), "mismatches", [])
    if told:
        differences = "; ".join(line.removeprefix("- ds ").replace(" vs hf ", " there, ") for line in told)
        raise RecipeError(
            f"DeepSpeed's configuration and the arguments differ: {differences} here.",
            fix='write "auto" there to use the values of the arguments',
        )


def need_launcher(args: TrainingArguments) -> None:
    """Checks that a launcher has started DeepSpeed's processes, so that they can find each other.

    Raises:
        RecipeError: there is no launcher.
    """
    if _config(args) is not None and "RANK" not in os.environ:
        raise RecipeError(
            "DeepSpeed needs a launcher, even for one process.",
            fix="start it with `torchrun --nproc_per_node N -m honed train ...` (a script: `torchrun ... SCRIPT.py`)",
        )


def need_whole_model(args: TrainingArguments) -> None:
    """Checks that a model's whole weights can be saved.

    Raises:
        RecipeError: ZeRO-3 would save shards.
    """
    config = _config(args)
    name = "stage3_gather_16bit_weights_on_model_save"
    if config is not None and config.is_zero3() and not config.get_value(f"zero_optimization.{name}", False):
        raise RecipeError(
            "ZeRO-3 would save the trained model in shards that only DeepSpeed can read.",
            fix=f'set "{name}": true in "zero_optimization" (with `accelerate config`, zero3_save_16bit_model: true)',
        )


def _config(args: TrainingArguments) -> Any:
    """Returns accelerate's wrapper of the JSON; None without DeepSpeed."""
    plugin = getattr(args, "deepspeed_plugin", None)
    return None if plugin is None else plugin.hf_ds_config
