"""Statements about runs of several steps: both engines, several processes, resuming, saving and loading."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from honed.data.batch.table import PackedRows
from honed.errors import RecipeError
from honed.model.adapters.adapters import has_adapter, load_with_adapter
from honed.model.load.load import load_model
from honed.prove.engine import apart, one_step, silent, trained, weights_apart, worst
from honed.prove.ranks import stepped_by_ranks
from honed.prove.statement import Measured, NotChecked
from honed.prove.subject import Check, Subject
from honed.quantities import counted
from honed.train.loop import loop
from honed.train.loop.recipe import config_of, known_to_transformers
from honed.train.options.config import SFTConfig

STEPS = 3
WORLDS = (2, 4)  # processes
STOP = 1  # the step after which a run is stopped; so many steps are left


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The log of each step, and the final weights."""

    log: list[dict[str, float]]
    weights: dict[str, torch.Tensor]


def engines(subject: Subject) -> Measured:
    """SFTTrainer against the plain loop, step by step."""
    with tempfile.TemporaryDirectory() as folder:
        args = _arguments(subject, folder, max_steps=STEPS)
        by_loop = _by_loop(subject, args, None)
        by_trainer = _by_trainer(subject, args)
    pairs = list(zip(by_trainer.log, by_loop.log, strict=True))
    keys = ("loss", "grad_norm", "learning_rate")
    logs = (abs(a[key] - b[key]) / max(abs(b[key]), 1e-12) for a, b in pairs for key in keys)
    value = worst(*logs, weights_apart(by_trainer.weights, by_loop.weights))
    before = trained(subject.drill.make())
    moved = weights_apart(by_loop.weights, before)
    detail = f"{STEPS} steps: losses, gradient norms, rates, weights (which moved by {moved:.0e})"
    return Measured(value=value, bound=max(1e-6, subject.rounding), detail=detail)  # logs are kept in float32


def resumed(subject: Subject) -> Measured:
    """A run of SFTTrainer resumed from a checkpoint against one that was never stopped."""
    with tempfile.TemporaryDirectory() as folder:
        args = _arguments(subject, folder, max_steps=2 * STOP, save_strategy="steps", save_steps=STOP)
        whole = _by_trainer(subject, args)
        again = _by_trainer(subject, args, resume=str(Path(folder) / f"checkpoint-{STOP}"))
    return _bits(whole, again)


def resumed_by_loop(subject: Subject) -> Measured:
    """The same for the plain loop."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        args = _arguments(subject, one, max_steps=2 * STOP, save_strategy="steps", save_steps=STOP)
        whole = _by_loop(subject, args, Path(one))
        shutil.copytree(Path(one) / f"checkpoint-{STOP}", Path(other) / f"checkpoint-{STOP}")
        again = _by_loop(subject, args, Path(other))
    if len(again.log) != STOP:
        raise AssertionError("the loop did not resume from the checkpoint")
    return _bits(whole, again)


def ranks(subject: Subject) -> Measured:
    """A step of SFTTrainer in two and in four processes against the same step in one."""
    subject.need_two()
    if subject.device.type != "cpu" or not torch.distributed.is_available():
        raise NotChecked("processes are started on the CPU only, with torch.distributed")
    worlds = [world for world in WORLDS if world <= len(subject.rows)]
    even = PackedRows(subject.rows.table, subject.rows.rows[: len(subject.rows) // worlds[-1] * worlds[-1]])
    one = one_step(subject.trainer, subject.drill.make(), even, subject.tokenizer)
    apart_by = [
        apart(stepped_by_ranks(subject.trainer, subject.drill.make(), even, subject.tokenizer, world=world), one)
        for world in worlds
    ]
    detail = f"gloo, one step of {counted(len(even), 'document')} in {' and '.join(map(str, worlds))} processes"
    return Measured(value=worst(*apart_by), bound=max(1e-6, subject.rounding), detail=detail)


def reloaded(subject: Subject) -> Measured:
    """The logits of a model after saving and loading against those before."""
    model = subject.drill.make().eval()
    ids = torch.from_numpy(subject.rows[0].input_ids).long()[None].to(subject.device)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        before = model(input_ids=ids, use_cache=False).logits
        if has_adapter(model):
            base = subject.drill.make().unload()
            again = load_with_adapter(folder, device=subject.device, base=base)
        else:
            again = load_model(folder, device=subject.device, dtype=subject.dtype)
        # A file's weights lie wherever its header ends, and products of the same numbers off a cache line's start may
        # have other last bits. Copies begin at one, as the weights of `model` do.
        for parameter in again.parameters():
            parameter.data = parameter.data.clone()
        after = again.eval()(input_ids=ids, use_cache=False).logits
    kind = "its adapter" if has_adapter(model) else "its weights"
    return Measured(
        value=float((after - before).abs().max()),
        bound=0,
        detail=f"{kind}, {counted(before.numel(), 'logit')} of a document",
    )


def _arguments(subject: Subject, folder: str, **changes: Any) -> SFTConfig:
    engine = known_to_transformers(subject.recipe.train)
    return replace(subject, recipe=replace(subject.recipe, train=engine)).arguments(folder, **changes)


def _by_trainer(subject: Subject, args: SFTConfig, *, resume: str | None = None) -> Run:
    model = subject.drill.make()
    trainer = silent(subject.trainer(model, args=args, train_dataset=subject.rows, processing_class=subject.tokenizer))
    trainer.train(resume_from_checkpoint=resume)
    return Run(log=[line for line in trainer.state.log_history if "loss" in line], weights=trained(trainer.model))


def _by_loop(subject: Subject, args: SFTConfig, folder: Path | None) -> Run:
    try:
        config = config_of(args)
    except RecipeError as error:
        raise NotChecked(error.problem) from None
    model, rows = subject.drill.make(), [subject.rows[n] for n in range(len(subject.rows))]
    outcome = loop.train(model, rows, config, folder=folder, pad_token_id=subject.tokenizer.pad_token_id)
    return Run(log=outcome.log, weights=trained(model))


def _bits(whole: Run, again: Run) -> Measured:
    differing = [name for name, tensor in whole.weights.items() if not torch.equal(tensor, again.weights[name])]
    losses = [a["loss"] != b["loss"] for a, b in zip(whole.log[-STOP:], again.log[-STOP:], strict=True)]
    detail = f"stopped after {STOP} of {2 * STOP} steps; {len(whole.weights)} tensors and the last loss, bit for bit"
    return Measured(value=len(differing) + sum(losses), bound=0, detail=detail)


# Steps of the drill model that a check computes, and processes that it starts.
COSTS: dict[Check, tuple[int, int]] = {
    engines: (2 * STEPS, 0),
    ranks: (3, sum(WORLDS)),
    resumed: (4, 0),
    resumed_by_loop: (4, 0),
    reloaded: (1, 0),
}
STATEMENTS = {
    "SFTTrainer = plain loop (losses, norms, weights)": engines,
    "several processes = one (loss, gradient)": ranks,
    "SFTTrainer resumed = uninterrupted (tensors that differ)": resumed,
    "plain loop resumed = uninterrupted (tensors that differ)": resumed_by_loop,
    "saved and loaded = before (logits)": reloaded,
}
