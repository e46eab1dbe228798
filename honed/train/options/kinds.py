"""The kinds of SFTTrainer's arguments: one of the wrong kind is refused by name, not by what it lacks."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from honed.errors import RecipeError


def check_kinds(model: Any, args: Any, processing_class: Any, peft_config: Any) -> None:
    """Checks what SFTTrainer is given, before anything is read from it; None is right for all but the model.

    Raises:
        RecipeError: an argument is of a type that has none of what is needed.
    """
    if not isinstance(model, (str, os.PathLike, nn.Module)):
        raise _refusal("model", model, "pass a model, or a folder's or a Hub id's name")
    if args is not None and not hasattr(args, "to_dict"):
        raise _refusal("args", args, "pass SFTConfig(**args)" if isinstance(args, dict) else "pass an SFTConfig")
    if isinstance(processing_class, (str, os.PathLike)):
        raise _refusal(
            "processing_class", processing_class, f"pass AutoTokenizer.from_pretrained({str(processing_class)!r})"
        )
    if peft_config is not None and not hasattr(peft_config, "peft_type"):
        makes = "peft.LoraConfig(**peft_config)" if isinstance(peft_config, dict) else "a peft.LoraConfig"
        raise _refusal("peft_config", peft_config, f"pass {makes}")


def _refusal(name: str, given: Any, fix: str) -> RecipeError:
    return RecipeError(f"SFTTrainer's {name} is of type {type(given).__name__}, which cannot be used.", fix=fix)
