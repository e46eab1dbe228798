"""LLaMA-Factory's `freeze`, which trains only some layers, as `train.trainable` in a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from honed.cli.new.translate import Draft, as_list

NO_NUMBER = "only the model's configuration says which layers are the last, and it is not in a folder here"
TO_DO = "name the model's folder, or write full, and then train.trainable into the recipe"


def freeze(draft: Draft, key: str, *, layers: int, modules: Any, extra: Any) -> None:
    """Writes the names of the trained weights.

    Args:
        key: their key that requests it, for refusals.
        layers: the number of last layers to train; if negative, of first layers.
        modules: names of modules in these layers, or "all".
        extra: names of modules outside the layers.
    """
    numbers = list(range(-layers)) if layers < 0 else _last(draft, layers)
    if not numbers:
        draft.refuse(key, NO_NUMBER, TO_DO)
        return
    names = as_list(modules)
    inside = "" if names == ["all"] else f"({'|'.join(map(re.escape, names))})"
    draft.put("lora", None, "weights by name")
    patterns = [rf"\.({'|'.join(map(str, numbers))})\.{inside}", *map(re.escape, as_list(extra))]
    draft.put("train.trainable", patterns, f"the {'first' if layers < 0 else 'last'} {abs(layers)} layers")


def _last(draft: Draft, count: int) -> list[int]:
    """Returns the indices of the last layers; none if the model is not in a local folder."""
    from honed.model.load.load import load_config

    name = str(draft.lines["model"].value) if "model" in draft.lines else ""
    folder = next((place for place in (Path(name), draft.place.parent / name) if (place / "config.json").is_file()), "")
    if not name or not folder:
        return []
    layers = load_config(str(folder)).get_text_config().num_hidden_layers
    return list(range(max(0, layers - count), layers))
