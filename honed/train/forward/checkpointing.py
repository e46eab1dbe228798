"""Chooses, before the first step, which layers recompute their activations in the backward pass.

    gradient_checkpointing   True, "full"     all layers; False, "none": none
                             "selective"      the first half of them
                             "auto"           the fewest with which the longest micro-batch fits into memory

transformers enables checkpointing for all layers; it is then disabled in those not chosen by their own flag.
Recomputation uses the same random numbers, so gradients do not depend on the choice.
"""

from __future__ import annotations

import heapq
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from honed.data.batch.table import PackedRows
from honed.errors import HonedError
from honed.model.adapters.adapters import adapter_method
from honed.model.layers import decoder_layers, keep_first
from honed.model.load.packed_experts import PackedWeight
from honed.model.load.quantize import is_quantized
from honed.model.memory import free_memory
from honed.model.plan import plan
from honed.model.plan.activations import FP32, Formats
from honed.model.plan.checkpointing import Choice, fewest, loaded_bytes
from honed.model.plan.sizes import adapter_in, chosen_in, sizes_of
from honed.recipe import PLUS_EXPERTS
from honed.train.forward.seams import base_model
from honed.train.options.config import SFTConfig
from honed.train.options.optim import planned
from honed.train.options.surroundings import is_sharded

# Fraction of the free memory to plan with: predictions were within 10% for the families in `READ_FAMILIES`.
SHARE, SHARE_UNREAD = 0.9, 0.6
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
UNKNOWN_MODEL = "the planner does not know this model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The number of layers that recompute their activations (None: as the arguments say), and a note on the reason."""

    layers: int | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The bytes that a step may use, and a description of where the number comes from."""

    size: float
    says: str


class Unplannable(Exception):
    """The reason why memory cannot be planned, so that all layers recompute."""


def recomputes(args: SFTConfig) -> bool:
    """Whether activations are recomputed; "auto", which is decided when the rows are known, counts as not."""
    return args.gradient_checkpointing not in (False, "auto")


def decide(
    args: SFTConfig, model: nn.Module, longest: tuple[int, int] | None, *, is_multimodal: bool = False
) -> Decision:
    """What `args.gradient_checkpointing` comes to for a model that is on its device.

    Args:
        longest: see `largest_batch`.
        is_multimodal: whether the model has a vision tower, whose activations are not planned.
    """
    mode = args.gradient_checkpointing
    if isinstance(mode, bool):
        return Decision()
    total = len(decoder_layers(model))
    if mode == "selective":
        count = plan.selected(total)
        return Decision(layers=count, note=f"gradient_checkpointing=selective: {_which(count, total)}.")
    if adapter_method(model) == "PREFIX_TUNING":
        return Decision(layers=0, note="gradient_checkpointing=auto: none, as it would drop the adapter's prefix.")
    try:
        job = _plannable(args, model, longest, is_multimodal=is_multimodal, total=total)
        choice, memory = choose(job, args, there=loaded_bytes(job))
    except Unplannable as reason:
        return Decision(layers=max(1, total), note=f"gradient_checkpointing=auto: all layers, because {reason}.")
    if not choice.layers and choice.fits and choice.job.optimizer.known:
        return Decision(layers=0)
    return Decision(layers=choice.layers, note=f"gradient_checkpointing=auto: {in_words(choice, memory)}.")


def choose_layers(
    args: SFTConfig, model: nn.Module, rows: Any, *, padded: bool, is_multimodal: bool
) -> tuple[list[TrainerCallback], list[str]]:
    """Applies `decide` to our own `args`; returns the callback that it needs, if any, and notes.

    Args:
        rows, padded: see `largest_batch`.
        is_multimodal: see `decide`.
    """
    decision = decide(args, model, largest_batch(rows, args, padded=padded), is_multimodal=is_multimodal)
    if decision.layers is None:
        return [], []
    set_switch(args, on=decision.layers > 0)
    return [FirstLayers(decision.layers)], [decision.note] if decision.note else []


def choose(job: plan.Job, args: SFTConfig, *, there: int) -> tuple[Choice, Memory]:
    """Chooses the fewest layers for `memory_budget` or the free memory.

    Args:
        job: its `checkpointing` is ignored.
        there: bytes of the predicted peak that are already in use.

    Raises:
        Unplannable: neither is known.
    """
    if args.memory_budget is not None:
        memory = Memory(size=args.memory_budget * plan.GB, says=f"memory_budget of {args.memory_budget:g} GB")
        return fewest(job, memory.size), memory
    free = _free(args)
    if free is None:
        raise Unplannable("the free memory is unknown; set memory_budget")
    share = SHARE if job.sizes.read else SHARE_UNREAD
    memory = Memory(size=share * free, says=f"{share:.0%} of the {free / plan.GB:,.1f} GB that are free")
    return fewest(job, memory.size, there=there), memory


def in_words(choice: Choice, memory: Memory) -> str:
    """Describes the choice and its reason."""
    which = _which(choice.layers, choice.job.sizes.layers)
    more = f" ({choice.operations - 1:.0%} more operations)" if choice.layers else ""
    takes = f"a step takes about {choice.needs / plan.GB:,.2f} GB"
    without = f", without it {choice.without / plan.GB:,.2f} GB" if choice.layers else ""
    fits = "" if choice.fits else "; that is too much: lower per_device_train_batch_size or max_length"
    doubt = f"; {choice.job.optimizer.doubt}" if choice.job.optimizer.doubt else ""
    return f"{which}{more}; {takes}{without}, and may take {memory.size / plan.GB:,.2f} GB ({memory.says}){fits}{doubt}"


def job_in(model: nn.Module, args: SFTConfig, tokens: int, rows: int) -> plan.Job:
    """Returns the planner's job for a loaded model.

    Raises:
        Unplannable: the planner does not know the model.
    """
    base = base_model(model)
    try:
        sizes = sizes_of(base.config.get_text_config())
    except (HonedError, NotImplementedError, KeyError, AttributeError):
        raise Unplannable(UNKNOWN_MODEL) from None
    device = args.device.type
    weight = min(FP32, max((p.element_size() for p in base.parameters() if p.dtype in FLOATS), default=FP32))
    adapter = adapter_in(model)
    trains_all, own = adapter.weights > sizes.parameters / 2, adapter.rank == 0 and base is model
    return plan.Job(
        sizes=sizes,
        adapter=None if trains_all or own else adapter,
        quantization=_quantization(base),
        length=-(-tokens // rows),
        rows=rows,
        checkpointing=False,
        accumulation=2 if args.tokens_per_step is not None else args.gradient_accumulation_steps,
        device=device,
        formats=Formats(
            weight=weight, compute=2 if args.bf16 or args.fp16 else weight, copies_attention=device != "cuda"
        ),
        optimizer=planned(args, in_backward=args.optimizer_in_backward),
        chosen=chosen_in(model) if own and adapter.weights < sizes.parameters else None,
    )


def largest_batch(rows: Any, args: SFTConfig, *, padded: bool = False) -> tuple[int, int] | None:
    """Returns tokens and rows of the largest micro-batch that a rank can get from these rows; None if unknown.

    Args:
        rows: prepared rows; others (a stream) count as rows of `max_length`.
        padded: whether rows are padded to the longest in their batch.
    """
    size, ranks = args.per_device_train_batch_size, args.sequence_parallel_size
    if not isinstance(rows, PackedRows) or not len(rows) or args.tokens_per_step is not None:
        return None if args.max_length is None else (-(-size * args.max_length // ranks), size)
    lengths = rows.table.lengths.tolist()
    longest = heapq.nlargest(size, (sum(lengths[document] for document in row) for row in rows.rows))
    return (longest[0] * len(longest) if padded else -(-sum(longest) // ranks)), len(longest)


def set_switch(args: SFTConfig, *, on: bool) -> None:
    """Sets gradient checkpointing under its old and its new name in transformers."""
    args.gradient_checkpointing = on
    if hasattr(args, "activation_checkpointing"):
        args.activation_checkpointing = on


class FirstLayers(TrainerCallback):
    """Limits checkpointing to the first layers after the Trainer has enabled it for all."""

    def __init__(self, count: int) -> None:
        self.count = count

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        keep_first(model, self.count)


def _which(count: int, total: int) -> str:
    if not count:
        return f"none of the {total} layers recomputes its activations"
    return f"{'all' if count == total else f'the first {count} of the'} {total} layers recompute their activations"


def _plannable(
    args: SFTConfig, model: nn.Module, longest: tuple[int, int] | None, *, is_multimodal: bool, total: int
) -> plan.Job:
    if not total:
        raise Unplannable("the model can do it only as a whole")
    if is_multimodal:
        raise Unplannable("the vision tower's memory is not planned")
    if is_sharded(args):
        raise Unplannable("the memory of sharded ranks is not planned")
    if longest is None:
        raise Unplannable("the longest row is not known without max_length")
    job = job_in(model, args, *longest)
    if job.sizes.layers != total:
        raise Unplannable(UNKNOWN_MODEL)
    return job


def _free(args: SFTConfig) -> float | None:
    """Bytes free on this rank's device. Ranks may choose differently: gradients do not depend on the choice."""
    free = free_memory(args.device)
    if free is None or args.device.type != "cpu" or args.world_size == 1:
        return free
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", str(args.world_size)))  # shared by a machine's ranks


def _quantization(base: nn.Module) -> str | None:
    if not is_quantized(base):
        return None
    config = getattr(base.config, "quantization_config", None)
    packed = any(isinstance(weight, PackedWeight) for weight in base.parameters())
    return "int8" if getattr(config, "load_in_8bit", False) else f"nf4{PLUS_EXPERTS}" if packed else "nf4"
