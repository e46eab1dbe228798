"""Predict the peak memory and the time per step of training before anything is loaded.

  honed plan Qwen3-8B --gpu 24GB
  honed plan Qwen/Qwen2.5-7B-Instruct --gpu 8GB --length 512
  honed plan recipe.yaml --gpu rtx-4090             (your own recipe, as for `honed train`)
  honed plan --model Qwen3-8B --gpu 80GB --optim adamw_8bit
  honed plan --model runs/mine --flops 50T --json
  honed plan --model Qwen3-8B --gpu h100 --gpus 64 --network 3200gbps     (DDP, FSDP2, hybrid; docs/scaling.md)

Models are folders, Hub ids (only their configuration is read), or built-in names. GB are 10^9 bytes. docs/planning.md
has the formulas, their assumptions and their measured errors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.cli.machine import GPUS, Machine, gb, machine
from honed.cli.plan import ranks
from honed.cli.plan.choices import Choice, best, choices_for
from honed.cli.plan.ranks import RankChoice
from honed.cli.recipe_arguments import RECIPE_SUFFIXES, divide
from honed.errors import RecipeError

if TYPE_CHECKING:
    from honed.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "items", nargs="*", metavar="MODEL | RECIPE | key=value", help="a model or a recipe first, then changes to it"
    )
    parser.add_argument("--model", help="short for model=...")
    parser.add_argument("--gpu", metavar="SIZE|NAME", help=f"24GB, 24GiB or one of {', '.join(GPUS)} [this machine]")
    parser.add_argument("--length", type=int, metavar="N", help="short for data.max_length=N")
    parser.add_argument("--optim", metavar="NAME", help="short for optim=NAME: adamw_8bit, adafactor, muon, ...")
    parser.add_argument("--flops", metavar="RATE", help="operations per second at best, such as 400T [measured on CPU]")
    parser.add_argument("--efficiency", type=float, default=0.4, metavar="SHARE", help="of them that is reached [0.4]")
    ranks.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="all numbers, in bytes and seconds")


def run(args: argparse.Namespace, command: str) -> int:
    """Plans the run and shows the table."""
    from honed.cli.console import quiet_libraries

    quiet_libraries()
    model, path, changes = _first(args)  # before imports that take seconds
    has_changes = bool(changes)
    from honed.model.plan.optimizers import DEFAULT
    from honed.recipe import load_recipe
    from honed.train.options.optim import known_optimizer

    changes += [f"model='{model}'"] if model else []
    changes += [f"data.max_length={args.length}"] if args.length is not None else []
    changes += [f"optim={args.optim}"] if args.optim else []
    named = load_recipe(path, changes)
    recipe = _of_base(named)
    own = path is not None or has_changes or recipe is not named
    known_optimizer(recipe.train.get("optim", DEFAULT))
    if not 0 < args.efficiency <= 1:
        raise RecipeError(f"--efficiency is {args.efficiency}.", fix="give a share above 0, up to 1")
    on = machine(args.gpu, args.flops)
    choices = choices_for(recipe, on, efficiency=args.efficiency, own=own)
    over = None if args.gpus is None else ranks.cluster(args, on)
    ranked = [] if over is None else ranks.rank_choices(choices, on, over, efficiency=args.efficiency)
    if args.json:
        print(as_json(recipe, on, choices, ranked))
        return 0
    if recipe is not named:
        print(f"{named.model} holds an adapter of {recipe.model}: planned is this model, with such an adapter.\n")
    print(as_text(recipe, on, choices, efficiency=args.efficiency))
    if over is not None:
        print("", ranks.heading(over), "", *aligned(ranks.table(ranked)), "", sep="\n")
        print(*ranks.notes(over), sep="\n")
    return 0


def _first(args: argparse.Namespace) -> tuple[str | None, Path | None, list[str]]:
    """Returns the model, the recipe and its changes. The first argument is a recipe if one has that name."""
    from honed.model.plan.shapes import is_model

    try:
        return args.model, *divide(args.items)
    except RecipeError:
        first = args.items[0]
        if args.model or first.endswith(RECIPE_SUFFIXES) or not is_model(first):
            raise
        return first, None, args.items[1:]


def _of_base(recipe: Recipe) -> Recipe:
    """Returns the recipe with base and options of the adapter if its model is one's folder, as training takes it."""
    if not Path(recipe.model).expanduser().is_dir():
        return recipe
    from honed.model.adapters.load_trained import as_new_adapter

    return as_new_adapter(recipe)


def as_json(recipe: Recipe, on: Machine, choices: list[Choice], ranked: list[RankChoice]) -> str:
    """Returns all numbers, including those for several GPUs if they are planned."""
    sizes = choices[0].job.sizes
    content = {
        "model": recipe.model,
        "parameters": sizes.parameters,
        "formulas_checked_for_this_family": sizes.read,
        "positions": sizes.positions,
        "device": on.device,
        "memory_bytes": on.memory,
        "flops": on.flops,
        "optim": choices[0].job.optimizer.name,
        "optimizer_state_known": choices[0].job.optimizer.known,
        "choices": [choice.as_dict() for choice in choices],
        "recipe": best(choices).name if any(choice.fits for choice in choices) else None,
        **({"ranks": [one.as_dict() for one in ranked]} if ranked else {}),
    }
    return json.dumps(content, indent=1)


def as_text(recipe: Recipe, on: Machine, choices: list[Choice], *, efficiency: float) -> str:
    """Returns the table of choices, the parts of the best one, and its lines for a recipe."""
    sizes = choices[0].job.sizes
    first = choices[0].job
    lines = [
        f"{recipe.model}: {_number(sizes.parameters)} parameters, {sizes.layers} layers of {sizes.hidden:,}, "
        f"vocabulary {sizes.vocabulary:,}, head {'tied' if sizes.tied else 'of its own'}",
        f"on {on.says}, rows of {first.length:,} tokens, {first.rows} in a micro-batch, {first.optimizer.name}",
        "",
        *_table(choices),
        "",
    ]
    if any(choice.fits for choice in choices):
        lines += [*_parts(best(choices)), "", *_recipe_lines(recipe, best(choices))]
    else:
        least = min(choices, key=lambda choice: choice.found.peak)
        lines += [f"Nothing fits. The least is {least.name}, with {gb(least.found.peak)} GB:", *_parts(least)]
        if least.longest:
            lines.append(f"It would fit with rows of up to {least.longest:,} tokens: --length {least.longest}")
    return "\n".join(
        [*lines, "", *_length_notes(choices), *_notes(on, sizes, efficiency), *_optimizer_notes(on, choices)]
    )


def _table(choices: list[Choice]) -> list[str]:
    rows = [("", "peak", "fits", "longest row", "tokens/micro-batch", "time/step")]
    rows += [
        (
            choice.name,
            f"{gb(choice.found.peak)} GB",
            "yes" if choice.fits else "no",
            (f"{choice.longest:,}" + _why_not_more(choice)) if choice.longest else "-",
            f"{choice.rows * choice.job.length:,}" if choice.rows else "-",
            "?" if choice.seconds is None else _seconds(choice.seconds),
        )
        for choice in choices
    ]
    return aligned(rows)


def _why_not_more(choice: Choice) -> str:
    """Returns a mark if something other than memory limits the longest row."""
    from honed.model.plan.plan import LONGEST

    return " *" if choice.longest == choice.job.sizes.positions else "+" if choice.longest == LONGEST else ""


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Formats rows of cells as lines, with the first column left-aligned and all others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


MOMENTS = {
    "loss": "when the loss is computed",
    "backward": "at the first layer of the backward pass",
    "last_layer": "at the last layer of the backward pass",
    "gradients": "when all gradients are there",
    "step": "when the optimizer takes its step",
}


def _parts(choice: Choice) -> list[str]:
    from dataclasses import asdict

    parts = asdict(choice.found.parts)
    lines = [f"{choice.name}, {MOMENTS[choice.found.peak_moment]}:"]
    lines += [f"  {name:12} {gb(size):>8} GB" for name, size in parts.items() if size]
    return [*lines, f"  {'sum':12} {gb(choice.found.peak):>8} GB"]


def _recipe_lines(recipe: Recipe, choice: Choice) -> list[str]:
    job = choice.job
    checkpointing = str(job.checkpointing).lower() if job.recomputed is None else "auto"
    lines = [f"model: {recipe.model}"]
    lines += [f"quantization: {job.quantization}"] if job.quantization else []
    lines += [f"data: {{max_length: {job.length}}}"]
    lines += ["lora: null"] if job.adapter is None else [f"lora: {{r: {job.adapter.rank}}}"]
    own = [name for name in ("optim", "optim_args", "optimizer_in_backward") if name in recipe.train]
    more = "".join(f", {name}: {json.dumps(recipe.train[name])}" for name in own)
    lines += [f"train: {{per_device_train_batch_size: {job.rows}, gradient_checkpointing: {checkpointing}{more}}}"]
    return ["In a recipe:", *(f"  {line}" for line in lines)]


def _notes(on: Machine, sizes: Any, efficiency: float) -> list[str]:
    notes = ["Every row is taken to be full and every token trained, so shorter rows take less."]
    if on.flops is None:
        notes.append("No time: name the GPU (--gpu rtx-4090), or its speed (--flops 400T).")
    else:
        notes.append(
            f"Time assumes {efficiency:.0%} of {on.flops / 1e12:,.2f} TFLOP/s; what is reached was not measured."
        )
    if on.device == "cuda":
        notes.append("The formulas were held against CPU runs; CUDA's own share (overhead) is an allowance.")
    if not sizes.read:
        notes.append(f"Layers of {sizes.family} were not read: their activations are taken to be those of a Llama.")
    if sizes.routed:
        notes.append("Quantization leaves the experts as they are, and an adapter on them makes peft hold them twice.")
    return notes


def _length_notes(choices: list[Choice]) -> list[str]:
    """Returns notes on row lengths that the model's positions limit, not memory."""
    length, positions = choices[0].job.length, choices[0].job.sizes.positions
    if positions is None:
        return []
    notes = []
    if any(choice.longest == positions for choice in choices):
        notes.append(f"* {positions:,} positions are all that the model has, whatever memory would allow.")
    if length > positions:
        notes.append(f"Rows of {length:,} tokens are longer than the {positions:,} positions that the model has.")
    return notes


def _optimizer_notes(on: Machine, choices: list[Choice]) -> list[str]:
    from honed.model.plan.optimizers import paged_bytes

    job = next((choice for choice in choices if choice.fits), choices[-1]).job
    notes = [f"Optimizer: {job.optimizer.doubt}."] if job.optimizer.doubt else []
    if on.device == "cuda" and (size := paged_bytes(job.optimizer, job.trained, weight=job.trained_format)):
        notes.append(f"{job.optimizer.name}: {gb(size)} GB of its state, counted here, can go to the host's memory.")
    return notes


def _number(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
