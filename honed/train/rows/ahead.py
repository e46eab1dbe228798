"""Prepares rows before the model's weights are loaded, which may take minutes, so that errors are reported first."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from honed.data.mix.mixture import Mixture
from honed.data.prepare.cache import prepare_cached
from honed.data.prepare.options import PrepareOptions, lowered_length
from honed.data.prepare.prepare import Prepared, prepare
from honed.data.vision.prepare import VisionPrepared, prepare_vision
from honed.train.forward import vision
from honed.train.options.config import SFTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """A dataset that was prepared with the options that the model is expected to need.

    Attributes:
        data: the dataset itself.
        processing_class, options: what it was prepared with.
        made: the prepared rows.
    """

    data: Any
    processing_class: Any
    options: PrepareOptions
    made: Prepared | VisionPrepared

    def fits(self, processing_class: Any, options: PrepareOptions) -> bool:
        """Whether preparing with these would give the same rows."""
        return self.options == options and _marks_of(self.processing_class) == _marks_of(processing_class)


def prepare_ahead(
    data: Any,
    processing_class: Any,
    args: SFTConfig,
    *,
    name: str = "train",
    formatting_func: Callable[[Any], Any] | None = None,
) -> Any:
    """Returns the dataset as `Ahead`, or unchanged if it is not prepared as a whole or can be read only once.

    The model may still lower `max_length` or not support shared prefixes; the rows are then prepared again.

    Args:
        data: the dataset; for evaluation also a dict of several.
        name: "train", or the name of an evaluation set.
        processing_class, args, formatting_func: see `SFTTrainer`.

    Raises:
        DataError, TemplateError, RecipeError: see `prepare` and `prepare_vision`.
    """
    if isinstance(data, dict) and name == "eval":
        parts = ((part, f"eval {part}", rows) for part, rows in data.items())
        return {
            part: prepare_ahead(rows, processing_class, args, name=own, formatting_func=formatting_func)
            for part, own, rows in parts
        }
    if args.streaming or args.skips_preparation or args.shuffle_dataset or not _can_be_read_again(data):
        return data
    max_length, _ = lowered_length(args.max_length, vision.tokenizer_of(processing_class))
    wanted = args.prepare_options(evaluation=name != "train")
    options = replace(wanted, max_length=max_length, share_prefixes=bool(args.share_prefixes))
    own = None if has_ids(data) else formatting_func
    desc = f"Preparing {name} data"
    made = prepare_rows(data, processing_class, options, args, formatting_func=own, desc=desc)
    return Ahead(data=data, processing_class=processing_class, options=options, made=made)


def prepare_rows(
    data: Any,
    processing_class: Any,
    options: PrepareOptions,
    args: SFTConfig,
    *,
    formatting_func: Callable[[Any], Any] | None = None,
    desc: str,
) -> Prepared | VisionPrepared:
    """Returns the rows that were prepared ahead, or prepares them now with the cache and workers of `args`.

    Raises:
        DataError, TemplateError, RecipeError: see `prepare` and `prepare_vision`.
    """
    if isinstance(data, Ahead):
        if data.fits(processing_class, options):
            return data.made
        data = data.data
    if vision.is_processor(processing_class):
        return prepare_vision(
            data,
            processing_class,
            options,
            image_folder=args.image_folder,
            max_pixels=args.image_max_pixels,
            formatting_func=formatting_func,
            desc=desc,
        )
    make = prepare_cached if args.data_cache else prepare
    workers = args.dataset_num_proc or 1
    return make(data, processing_class, options, formatting_func=formatting_func, desc=desc, workers=workers)


def unprepared(data: Any) -> Any:
    """Returns the dataset as the caller passed it."""
    return data.data if isinstance(data, Ahead) else data


def has_ids(dataset: Any) -> bool:
    """Whether a dataset is already tokenised."""
    return "input_ids" in (getattr(dataset, "column_names", None) or ())


def has_transform(dataset: Any) -> bool:
    """Whether a dataset of `datasets` has a transform, which creates its rows anew each time they are read."""
    format_set = getattr(dataset, "format", None)  # strings have a method of this name
    return isinstance(format_set, Mapping) and format_set.get("type") == "custom"


def _can_be_read_again(data: Any) -> bool:
    named_or_listed = isinstance(data, (str, os.PathLike, list, Mixture))
    return (named_or_listed or hasattr(data, "select")) and not has_transform(data)


def _marks_of(processing_class: Any) -> tuple[Any, ...]:
    """What may be changed in a tokenizer between its loading and its use; its vocabulary stays."""
    tokenizer = vision.tokenizer_of(processing_class)
    template = getattr(processing_class, "chat_template", None)
    return template, tokenizer.chat_template, tokenizer.special_tokens_map, tokenizer.get_added_vocab()
