"""Vision-language models in the trainer: batches with pixels, seams, and freezing of the vision tower."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from honed.data.batch.collate import Batch, PaddedCollator
from honed.data.example import RowError
from honed.data.vision.images import ImageRef, load
from honed.data.vision.prepare import VisionRow
from honed.data.vision.template import shows_images
from honed.errors import DataError, ModelError, RecipeError
from honed.model.load.added_tokens import with_tokens
from honed.model.load.load import load_processor, load_tokenizer, sees_images
from honed.train.forward.seams import base_model
from honed.train.options.config import SFTConfig

# 1 at the tokens of an image; the name depends on the model (Ernie 4.5 has two, one for its experts)
TYPES = ("mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids")
MADE_FROM_TEXT = ("input_ids", "attention_mask", *TYPES)


def is_processor(processing_class: Any) -> bool:
    """Whether this is a processor for images, not a tokenizer."""
    return hasattr(processing_class, "tokenizer") and hasattr(processing_class, "image_processor")


def tokenizer_of(processing_class: Any) -> Any:
    """The processor's tokenizer; a tokenizer is returned as it is."""
    return processing_class.tokenizer if is_processor(processing_class) else processing_class


def load_processing_class(name: str, data: Any) -> Any:
    """Loads the processor of a vision model if the rows contain images, else the model's tokenizer."""
    return load_processor(name) if shows_images(data) and sees_images(name) else load_tokenizer(name)


def with_asked_tokens(processing_class: Any, args: SFTConfig) -> Any:
    """Returns the tokenizer, or the processor with its tokenizer, with the tokens that the arguments specify."""
    if not is_processor(processing_class):
        return with_tokens(processing_class, **args.token_options)
    return with_tokenizer(processing_class, with_tokens(processing_class.tokenizer, **args.token_options))


def with_tokenizer(processor: Any, tokenizer: Any) -> Any:
    """Returns the processor with this tokenizer; a copy if it has another one."""
    if tokenizer is processor.tokenizer:
        return processor
    changed = copy.copy(processor)
    changed.tokenizer = tokenizer
    return changed


def fit(args: SFTConfig, model: nn.Module, peft_config: Any) -> tuple[Any, list[str]]:
    """Returns the adapter's configuration for this model, and notes; adjusts honed's copy of `args` for images.

    Raises:
        RecipeError: packing or streaming is enabled.
    """
    for option in ("packing", "streaming"):
        if getattr(args, option):
            raise RecipeError(
                f"{option}=True does not work with images yet.",
                fix=f"set {option}=False, or train on text alone with processing_class=processor.tokenizer",
            )
    if args.ddp_find_unused_parameters is None and args.world_size > 1:
        args.ddp_find_unused_parameters = True  # a batch without images gives the vision tower no gradient
    return (None, []) if peft_config is None else language_only(peft_config, model)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionCollator:
    """Collates padded rows with the pixels of their images, which are opened here.

        input_ids        [[a <image> <image> b c]      pixel_values, image_grid_thw, ...: what the processor makes of
                          [d e       .       . .]]     the images of all rows, in order

    The ids were prepared before; the processor only makes the pixels.

    Attributes:
        multiple_of: rows are padded to a multiple of this length.
        dtype: the pixels' dtype, as for a served model (`processor(...).to(model.device, dtype)`); None to keep the
            processor's. Not every vision tower casts them itself, and Llama 4's processor returns bfloat16.
    """

    processor: Any
    multiple_of: int = 1
    dtype: torch.dtype | None = None

    def __call__(self, rows: Sequence[VisionRow]) -> Batch:
        """Returns `PaddedCollator`'s batch with the processor's tensors and, if the model needs them, token types.

        Raises:
            DataError: an image that could be opened during data preparation no longer can.
        """
        pad = self.processor.tokenizer.pad_token_id
        batch = PaddedCollator(pad_token_id=pad, multiple_of=self.multiple_of)(rows)
        images = [[_loaded(ref) for ref in row.images] for row in rows if row.images]
        texts = [" ".join([self.processor.image_token] * len(own)) for own in images] or [" "]
        seen = self.processor(text=texts, images=images or None, padding=True, return_tensors="pt")
        batch |= {key: self._cast(value) for key, value in seen.items() if key not in MADE_FROM_TEXT}
        for key in TYPES:
            if key in seen:
                # A token's type depends only on its id.
                kinds = seen["input_ids"][seen[key] > 0].unique()
                batch[key] = torch.isin(batch["input_ids"], kinds).long() * batch["attention_mask"]
        return batch

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _loaded(ref: ImageRef) -> Any:
    try:
        return load(ref)
    except RowError as error:
        raise DataError(
            f"{ref.source}: an image has changed since the data were prepared: {error}",
            fix="restore the image, or start over",
        ) from None


def vision_tower(model: nn.Module) -> nn.Module:
    """Returns the model's vision tower.

    Raises:
        ModelError: transformers does not know one.
    """
    inner = base_model(model)
    tower: nn.Module = inner.get_encoder(modality="image")
    if tower is inner or tower is inner.base_model:
        raise ModelError(
            f"{type(inner).__name__} has no vision tower that could be found.", fix="leave freeze_vision out"
        )
    return tower


def freeze_vision(model: nn.Module) -> str:
    """Freezes the vision tower; returns a note."""
    parameters = list(vision_tower(model).parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    return f"the vision tower is frozen: {sum(p.numel() for p in parameters):,} parameters are not trained"


def language_only(peft_config: Any, model: nn.Module) -> tuple[Any, list[str]]:
    """Excludes the vision tower from "all-linear" in the adapter's configuration; returns it and notes.

    Configurations that name or exclude layers are returned unchanged. The argument itself is never changed.
    """
    if getattr(peft_config, "target_modules", None) != "all-linear" or peft_config.exclude_modules:
        return peft_config, []
    tower = vision_tower(model)
    name = next(name for name, module in base_model(model).named_modules() if module is tower)
    changed = copy.deepcopy(peft_config)
    changed.exclude_modules = re.escape(name) + r"\..*"
    return changed, [f"the adapter does not cover the vision tower ({name}); set target_modules to include it"]
