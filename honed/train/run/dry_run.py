"""Predicts what a recipe does, without loading weights, training, or writing to the output folder.

The model is built on torch's meta device; the data is prepared (and cached) as for training. What can only be tested
with weights (whether documents can share a row or a prefix) is assumed to work.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import islice
from typing import Any

import torch

from honed.data.ledger import Ledger
from honed.data.mix.mixture import as_mixture
from honed.data.prepare.options import PrepareOptions, part_options
from honed.data.read.sources import read_rows
from honed.errors import RecipeError, first_line
from honed.model.adapters.adapters import lora_config, ready_to_train
from honed.model.adapters.load_trained import as_new_adapter
from honed.model.adapters.trainable import train_only
from honed.model.device import pick_dtype
from honed.model.load.load import known_dtype, model_class, resolve
from honed.model.plan import plan
from honed.model.plan.checkpointing import libraries_bytes, with_layers
from honed.model.plan.step_time import flops_per_step
from honed.quantities import counted
from honed.recipe import LoraRecipe, Recipe
from honed.train.forward import checkpointing, vision
from honed.train.forward.zero3 import loaded_whole
from honed.train.optimizers.rates import notes_on_warm_up
from honed.train.options import rules
from honed.train.options.config import SFTConfig
from honed.train.options.optim import planned
from honed.train.rows.rows import Datasets
from honed.train.run.data import run_data
from honed.train.run.output import OutputState, output_state
from honed.train.run.run import CheckedRecipe, lora_options
from honed.train.trainer.start import fit_to_model

SHOWN_ROWS = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a run would do.

    Attributes:
        lora: the adapter's options: the recipe's, or those of the adapter that is trained further.
        parameters, trainable: parameter counts of the model with its adapter.
        dtype, device: those of the weights.
        tokenizer: the tokenizer, or the processor for rows with images.
        ledger: what happened to the data; None for streams.
        rows: packed rows, or documents without packing; None for streams.
        examples: the first rows, as (source, row, options of the source).
        steps: optimizer steps; `rows_per_step` and `tokens_per_step` are means over an epoch, for all processes.
        memory: peak bytes with rows of max_length; None if unknown.
        memory_of_rows: peak bytes with the longest micro-batch of these rows; None if unknown.
        longest: tokens of that micro-batch, including padding.
        operations: floating-point operations of an average step on each process; None if unknown.
        notes: notes on options that were adjusted or have no effect.
        output: what would happen to the output folder.
    """

    recipe: Recipe
    lora: LoraRecipe | None
    args: SFTConfig
    parameters: int
    trainable: int
    dtype: str
    device: str
    tokenizer: Any
    ledger: Ledger | None
    rows: int | None
    examples: list[tuple[Any, Any, PrepareOptions]]
    batches: int | None
    steps: int
    rows_per_step: float
    tokens_per_step: float | None
    memory: int | None
    memory_of_rows: int | None
    longest: int | None
    operations: float | None
    notes: list[str]
    output: OutputState


def dry_run(recipe: Recipe, *, overwrite: bool = False) -> DryRun:
    """Predicts what `honed.train.run.run.run` would do with these arguments.

    Raises:
        HonedError: any error that would stop the run before it trains.
    """
    args = CheckedRecipe.of(recipe).args
    with loaded_whole(args):
        return _dry_run(recipe, args, overwrite=overwrite)


def _dry_run(recipe: Recipe, args: SFTConfig, *, overwrite: bool) -> DryRun:
    notes = [*args.old_names, *rules.check(args)]
    if recipe.engine == "trainer":
        from honed.train.optimizers.trial import try_schedule  # imports transformers' Trainer

        try_schedule(args)  # not the optimizer: its package may be installed on the machine that trains only
    data = run_data(recipe.data, seed=args.seed)
    loaded = vision.load_processing_class(recipe.model, None if args.streaming else data.train)
    processing_class = vision.with_asked_tokens(loaded, args)
    is_multimodal = vision.is_processor(processing_class)
    as_new = as_new_adapter(recipe)
    model = meta_model(as_new.model, with_vision=is_multimodal)
    dtype = _dtype(recipe, args)
    parameters = model.num_parameters()
    notes += fit_to_model(args, model, vision.tokenizer_of(processing_class))
    model, adapter_notes = _with_adapter(as_new, args, model, is_multimodal=is_multimodal)
    datasets = Datasets(
        args,
        processing_class,
        formatting_func=None,
        collator=None,
        flat=True,
        shares_prefixes=bool(args.share_prefixes),
    )
    rows = None if args.streaming else datasets.make("train", data.train)
    if rows is not None and data.held_out is not None:
        datasets.make_evaluation(data.held_out)
    ledger = datasets.ledger()
    if ledger is not None and data.note:
        ledger.notes.append(data.note)
    counts = _counts(args, rows, ledger)
    steps = counts["steps"]
    if args.lr_scheduler_type.value != "constant":
        notes += notes_on_warm_up(args.get_warmup_steps(steps), steps)
    costs, cost_notes = _costs(as_new, args, rows, ledger, counts["tokens_per_step"])
    notes += cost_notes + adapter_notes
    return DryRun(
        recipe=recipe,
        lora=as_new.lora,
        args=args,
        parameters=parameters,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        dtype=dtype,
        device=str(args.device),
        tokenizer=processing_class,
        ledger=ledger,
        rows=None if rows is None else len(rows),
        examples=first_rows(data.train, args.prepare_options()),
        **counts,
        **costs,
        notes=[*notes, *(note for note in datasets.notes if ledger is None or note not in ledger.notes)],
        output=output_state(recipe, overwrite=overwrite),
    )


def meta_model(name: str, *, with_vision: bool = False) -> Any:
    """Builds a model without weights, from a name, folder or Hub id; `with_vision` as in `load_model`.

    Raises:
        ModelError: there is no such model.
        RecipeError: its configuration cannot be read.
    """
    from transformers import AutoConfig

    from honed.model.minimind.minimind import register

    register()
    folder = resolve(name)
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            return model_class(folder, with_vision, {}).from_config(config)
    except Exception as error:  # a wrong name, a missing file, an unknown architecture: all of different types
        raise RecipeError(
            f"The configuration of {name} cannot be read: {first_line(error)}",
            fix="check the name, the folder's files and the network",
        ) from None


def steps_of(
    args: SFTConfig, rows: int | None, tokens: int = 0, *, epochs: float | None = None
) -> tuple[int | None, int]:
    """Returns an epoch's micro-batches per process (None without rows; steps if tokens_per_step) and all steps.

    Args:
        rows, tokens: their numbers in an epoch.
        epochs: replaces the number of epochs or steps in `args`.
    """
    if rows is None:
        return None, args.max_steps
    of_all = args.per_device_train_batch_size * args.data_parallel_size
    batches = rows // of_all if args.dataloader_drop_last else math.ceil(rows / of_all)
    per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    if args.tokens_per_step is not None:
        batches = per_epoch = min(max(1, round(tokens / args.tokens_per_step)), rows)
    if epochs is None and args.max_steps > 0:
        return batches, args.max_steps
    return batches, math.ceil((args.num_train_epochs if epochs is None else epochs) * per_epoch)


def schedule_in_words(args: SFTConfig, steps: int) -> str:
    """Describes the schedule: "rises from 0 to 0.0002 in the first 5 of 100 steps, then falls ..."."""
    kind, options = args.lr_scheduler_type.value, dict(args.lr_scheduler_kwargs or {})
    warmup = 0 if kind == "constant" else min(steps, args.get_warmup_steps(steps))
    peak = f"{args.learning_rate:g}"
    rises = (
        f"rises from 0 to {peak} in the first {warmup:,} of {counted(steps, 'step')}, then "
        if warmup
        else f"is {peak}, "
    )
    if kind in ("constant", "constant_with_warmup"):
        return f"{rises}stays there" if warmup else f"stays at {peak}"
    end = f"{options.get('min_lr', args.learning_rate * options.get('min_lr_rate', 0)):g}"
    ways = {"linear": "falls linearly", "cosine": "falls as a cosine", "cosine_with_min_lr": "falls as a cosine"}
    if options == {"schedule": "minimind"}:
        return f"falls from {1.1 * args.learning_rate:g} to {0.1 * args.learning_rate:g} as MiniMind's cosine"
    if kind not in ways:
        return f"{rises}follows transformers' {kind} {options or ''}".rstrip()
    return f"{rises}{ways[kind]} to {end} at step {steps:,}"


def first_rows(data: Any, options: PrepareOptions) -> list[tuple[Any, Any, PrepareOptions]]:
    """Returns the first rows with the options of their source; several sources contribute equally."""
    parts = as_mixture(data).parts
    each = math.ceil(SHOWN_ROWS / len(parts))
    found = [(*row, part_options(part, options)) for part in parts for row in islice(read_rows(part.data), each)]
    return found[:SHOWN_ROWS]


def _with_adapter(recipe: Recipe, args: SFTConfig, model: Any, *, is_multimodal: bool) -> tuple[Any, list[str]]:
    if recipe.lora is None:
        return model, [train_only(model, args.trainable)] if args.trainable else []
    # Other initialisations, DoRA's magnitudes and new tokens' embeddings need weights.
    adapter: Any = lora_config(**{**lora_options(recipe.lora), "init": True, "use_dora": False})
    notes: list[str] = []
    if is_multimodal:
        adapter, notes = vision.fit(args, model, adapter)
    with torch.device("meta"):
        trained, adapter_notes = ready_to_train(model, adapter, checkpointing=False)
    return trained, notes + adapter_notes


def _dtype(recipe: Recipe, args: SFTConfig) -> str:
    if recipe.dtype is not None:
        return str(known_dtype(recipe.dtype))
    trains_all = recipe.lora is None and recipe.quantization is None
    return str(torch.float32 if trains_all else pick_dtype(args.device)).removeprefix("torch.")


def _counts(args: SFTConfig, rows: Any, ledger: Ledger | None) -> dict[str, Any]:
    """Computes the fields of a `DryRun` about steps, rows and tokens."""
    if rows is None:
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.data_parallel_size
        return {"batches": None, "steps": args.max_steps, "rows_per_step": float(per_step), "tokens_per_step": None}
    tokens = 0 if ledger is None else ledger.tokens
    batches, steps = steps_of(args, len(rows), tokens)
    _, of_an_epoch = steps_of(args, len(rows), tokens, epochs=1)
    return {
        "batches": batches,
        "steps": steps,
        "rows_per_step": len(rows) / of_an_epoch,
        "tokens_per_step": None if ledger is None else ledger.tokens / of_an_epoch,
    }


def _costs(
    recipe: Recipe, args: SFTConfig, rows: Any, ledger: Ledger | None, tokens_per_step: float | None
) -> tuple[dict[str, Any], list[str]]:
    """Computes the fields of a `DryRun` about memory and operations, and notes."""
    job, notes = _job(recipe, args), []
    if job is None:
        return dict.fromkeys(("memory", "memory_of_rows", "longest", "operations")), []
    if args.gradient_checkpointing == "auto":
        job, note = _checkpointed(job, args, rows)
        notes.append(note)
    elif job.optimizer.doubt:
        notes.append(f"memory: {job.optimizer.doubt}.")
    longest, ranks = None if rows is None else _longest(job, args, rows), args.sequence_parallel_size
    costs = {
        "memory": int(plan.estimate(dataclasses.replace(job, length=-(-job.length // ranks))).peak),
        "memory_of_rows": None if longest is None else int(plan.estimate(longest).peak),
        "longest": None if longest is None else longest.tokens,
        "operations": _operations(job, ledger, tokens_per_step, args.world_size),
    }
    return costs, notes


def _job(recipe: Recipe, args: SFTConfig) -> plan.Job | None:
    """Returns the planner's job for the run; None if the planner does not know the model's layers or the device."""
    if args.device.type not in ("cpu", "cuda"):
        return None
    try:
        job = plan.job_of(recipe, device=args.device.type)
        optimizer = planned(args, in_backward=args.optimizer_in_backward)
        return dataclasses.replace(job, length=args.max_length or job.length, optimizer=optimizer)
    except (RecipeError, NotImplementedError, KeyError):  # no max_length, or an unknown architecture
        return None


def _checkpointed(job: plan.Job, args: SFTConfig, rows: Any) -> tuple[plan.Job, str]:
    """Sets the checkpointed layers that training would choose for the longest micro-batch; also returns a note."""
    try:
        choice, memory = checkpointing.choose(_longest(job, args, rows), args, there=libraries_bytes(job))
    except checkpointing.Unplannable as reason:
        return with_layers(job, job.sizes.layers), f"gradient_checkpointing=auto: all layers, because {reason}."
    note = f"gradient_checkpointing=auto: {checkpointing.in_words(choice, memory)}."
    return with_layers(job, choice.layers), note


def _longest(job: plan.Job, args: SFTConfig, rows: Any) -> plan.Job:
    """Returns the job for the longest micro-batch of these rows."""
    tokens, count = checkpointing.largest_batch(rows, args) or (job.tokens, job.rows)
    return dataclasses.replace(job, length=-(-tokens // count), rows=count)


def _operations(job: plan.Job, ledger: Ledger | None, tokens_per_step: float | None, world_size: int) -> float:
    """Operations per step and process, from the data's token counts if known, else for rows of max_length."""
    if ledger is None or not tokens_per_step:
        return flops_per_step(job)
    share = ledger.trained_tokens / ledger.tokens
    return flops_per_step(job, trained_share=share) * tokens_per_step / world_size / (job.tokens * job.accumulation)
