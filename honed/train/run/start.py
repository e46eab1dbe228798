"""Prepares what a run starts from: tokenizer, template and rows first, the model's weights last."""

from __future__ import annotations

import dataclasses
from typing import Any

from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import make_template, tokenizer_with_template
from honed.data.templates.plain import PlainTemplate
from honed.data.templates.view import Template
from honed.data.vision.template import VisionTemplate
from honed.generate.answer import need_template
from honed.model.adapters.adapters import load_with_adapter
from honed.model.load.added_tokens import with_rows
from honed.model.load.load import is_adapter, load_model, resolve
from honed.recipe import Recipe
from honed.train.forward import vision
from honed.train.forward.zero3 import loaded_whole
from honed.train.options.config import SFTConfig
from honed.train.rows.ahead import prepare_ahead
from honed.train.run.data import RunData, run_data
from honed.train.run.ranks import RunRanks


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a run has before it loads weights: tokenizer (or processor) with the recipe's template, and the rows."""

    processing_class: Any
    template: Template | None
    data: RunData


def prepare_run(recipe: Recipe, args: SFTConfig, ranks: RunRanks, *, asks: bool) -> Start:
    """Prepares everything that needs no weights, so that bad rows are reported before the weights are loaded.

    Args:
        asks: whether the run asks questions, which needs a template.

    Raises:
        HonedError: the tokenizer, the template or the rows cannot be used.
    """
    whole = dataclasses.replace(recipe.data, eval_share=None)
    shown = None if args.streaming else run_data(whole, seed=args.seed).train
    processing_class = vision.with_asked_tokens(vision.load_processing_class(recipe.model, shown), args)
    make = VisionTemplate if vision.is_processor(processing_class) else make_template
    template = make(processing_class, args.prepare_options())
    write_template(processing_class, template, args.prepare_options())
    if asks:
        need_template(template, recipe.model)
    data = run_data(recipe.data, seed=args.seed)
    if args.chat_template_path is None:  # otherwise the trainer still changes the template
        with ranks.one_per_node_first():
            train = prepare_ahead(data.train, processing_class, args)
            held_out = prepare_ahead(data.held_out, processing_class, args, name="eval")
        data = dataclasses.replace(data, train=train, held_out=held_out)
    return Start(processing_class=processing_class, template=template, data=data)


def load_weights(recipe: Recipe, args: SFTConfig, processing_class: Any) -> Any:
    """The model, with rows for the tokens that the recipe adds; if the recipe names an adapter, its base with it."""
    options: dict[str, Any] = {"dtype": recipe.dtype, "quantization": recipe.quantization}
    with loaded_whole(args) as device:
        if is_adapter(folder := resolve(recipe.model)):
            model = load_with_adapter(folder, device=device, trains=True, **options)
        else:
            sees, trains_all = vision.is_processor(processing_class), recipe.lora is None
            model = load_model(recipe.model, device=device, with_vision=sees, trains_all=trains_all, **options)
    with_rows(model, vision.tokenizer_of(processing_class), args.add_tokens)
    return model


def write_template(processing_class: Any, template: Template | None, options: PrepareOptions) -> None:
    """Sets the training template in the tokenizer (or processor), so that both are saved together."""
    if isinstance(template, PlainTemplate):
        processing_class.chat_template = template.jinja()
    elif isinstance(template, VisionTemplate):
        processing_class.chat_template = template.chat_template
    elif options.template != "auto":
        processing_class.chat_template = tokenizer_with_template(processing_class, options.template).chat_template
