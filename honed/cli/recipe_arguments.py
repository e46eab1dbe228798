"""Recipes on the command line: a file or a packaged recipe, followed by changes to it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from honed.errors import RecipeError

if TYPE_CHECKING:
    from honed.recipe import Recipe


RECIPE_SUFFIXES = (".yaml", ".yml")
# Keys that identify another trainer's YAML; no recipe has any of them.
SIGNS: Mapping[str, frozenset[str]] = {
    "llamafactory": frozenset(
        {"model_name_or_path", "stage", "finetuning_type", "dataset", "dataset_dir", "template", "cutoff_len",
         "val_size", "lora_rank", "lora_target", "quantization_bit", "neat_packing", "mask_history", "plot_loss",
         "model_class", "train_dataset", "peft_config", "kernel_config", "dist_config", "quant_config",
         "sample_backend"}
    ),
    "axolotl": frozenset(
        {"base_model", "sequence_len", "micro_batch_size", "num_epochs", "adapter", "sample_packing", "val_set_size",
         "pretraining_dataset", "dataset_prepared_path", "lora_target_linear", "lr_scheduler", "optimizer", "datasets"}
    ),
    "trl": frozenset(
        {"model_name_or_path", "dataset_name", "dataset_config", "dataset_train_split", "dataset_text_field",
         "use_peft", "max_length", "packing_strategy", "assistant_only_loss", "completion_only_loss", "datasets"}
    ),
}  # fmt: skip


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Returns the recipe that a command line names, with its changes; missing options change nothing.

    Raises:
        RecipeError: see `load_recipe` and `divide`.
    """
    from honed.recipe import load_recipe

    shorts = [(key, getattr(args, key, None)) for key in ("model", "engine", "output")]
    _refuse_bytes([*args.items, *(args.data or ()), *(value or "" for _, value in shorts)])
    # `--data FILE learning_rate=1e-4`: argparse treats what follows as files.
    files = [item for item in args.data or () if "=" not in item or Path(item).exists()]
    path, changes = divide([*args.items, *(item for item in args.data or () if item not in files)])
    changes += [f"{key}={_quoted(value)}" for key, value in shorts if value]
    if files:
        changes.append(f"data.files=[{', '.join(map(_quoted, files))}]")
    try:
        return load_recipe(path, changes)
    except RecipeError as error:
        found = foreign_keys(path) if path is not None else {}
        if path is None or max(map(len, found.values()), default=0) < 2:  # a single one may be a mistake
            raise
        raise RecipeError(error.problem, fix=f"it is another trainer's: honed new recipe {path} mine.yaml") from None


def foreign_keys(path: Path) -> dict[str, list[str]]:
    """Returns the trainers whose YAML this may be -> the keys that indicate it; only those with the most keys."""
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    keys = [key for key in tree if isinstance(key, str)] if isinstance(tree, dict) else []
    found = {kind: [key for key in keys if key in signs] for kind, signs in SIGNS.items()}
    most = max(map(len, found.values()), default=0)
    return {kind: keys for kind, keys in found.items() if most and len(keys) == most}


def divide(items: list[str]) -> tuple[Path | None, list[str]]:
    """Returns the recipe's path, if the first item names one, and the changes to it.

    Raises:
        RecipeError: an item is neither a recipe nor key=value.
    """
    if not items or "=" in items[0]:
        return None, list(items)
    return find_recipe(items[0]), items[1:]


def find_recipe(name: str) -> Path:
    """Returns the path of a YAML file or a packaged recipe.

    Raises:
        RecipeError: there is no such recipe.
    """
    packaged = Path(__file__).parent.parent / "recipes"
    if name.endswith(RECIPE_SUFFIXES):
        path = Path(name)
        if path.is_file():
            return path
        raise RecipeError(f"No such recipe: {name}", fix="check the path")
    path = packaged / f"{name}.yaml"
    if path.is_file():
        return path
    known = ", ".join(sorted(file.stem for file in packaged.glob("*.yaml")))
    raise RecipeError(
        f"{name!r} is neither a recipe file (.yaml) nor one that comes with honed ({known}) nor key=value.",
        fix="for data, write --data FILE; for a model, --model NAME",
    )


def _refuse_bytes(arguments: list[str]) -> None:
    """Refuses raw bytes, which replace characters that the system's encoding lacks, and which no recipe can contain."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise RecipeError(
                f"{argument!a} is not text in this system's encoding ({sys.getfilesystemencoding()}).",
                fix="export PYTHONUTF8=1, or give the file another name",
            )


def _quoted(text: str) -> str:
    """Returns YAML that represents exactly this text."""
    return "'" + text.replace("'", "''") + "'"
