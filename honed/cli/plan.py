"""Say what training would take before anything is loaded: memory at its peak, and time per step.

  honed plan --model Qwen3-8B --gpu 24GB
  honed plan --model Qwen/Qwen2.5-7B-Instruct --gpu 8GB --length 512
  honed plan recipe.yaml --gpu rtx-4090             (one's own recipe, as `honed train` takes it)
  honed plan --model Qwen3-8B --gpu 80GB --optim adamw_8bit
  honed plan --model runs/mine --flops 50T --json
  honed plan --model Qwen3-8B --gpu h100 --gpus 64 --network 3200gbps     (DDP, FSDP2, hybrid; docs/scaling.md)

Models are folders, Hub ids (of which only the configuration is read), or names that are built in. GB are 10^9 bytes.
The formulas, what they assume and how far they were off where it was measured: docs/planning.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from honed.cli import plan_ranks
from honed.errors import RecipeError

if TYPE_CHECKING:
    from honed.cli.plan_ranks import RankChoice
    from honed.model.plan import Estimate, Job
    from honed.recipe import Recipe

# GB of memory, and the peak of dense bfloat16 products, as their makers publish them.
GPUS = {
    "rtx-3090": (24, 71e12),
    "rtx-4090": (24, 165e12),
    "l4": (24, 121e12),
    "l40s": (48, 362e12),
    "a100-40gb": (40, 312e12),
    "a100-80gb": (80, 312e12),
    "h100": (80, 989e12),
    "h200": (141, 989e12),
}
UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?$", flags=re.IGNORECASE)
RATE = re.compile(r"^(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMGTP]?)(?:FLOPS)?$", flags=re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is planned for: memory in bytes, operations per second (None if not known), and both in words."""

    device: str
    memory: float
    flops: float | None
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to train, what it takes, and what it leaves room for."""

    name: str
    job: Job
    found: Estimate
    fits: bool
    longest: int
    rows: int
    seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "name": self.name,
            "method": self.job.method,
            "gradient_checkpointing": self.job.checkpointing,
            "layers_recomputed": self.job.layers_recomputed,
            "length": self.job.length,
            "rows": self.job.rows,
            "fits": self.fits,
            **self.found.as_dict(),
            "longest_length": self.longest,
            "tokens_per_micro_batch": self.rows * self.job.length,
            "seconds_per_step": self.seconds,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("items", nargs="*", metavar="RECIPE | key=value", help="a recipe first, then changes to it")
    parser.add_argument("--model", help="short for model=...")
    parser.add_argument("--gpu", metavar="SIZE|NAME", help=f"24GB, 24GiB or one of {', '.join(GPUS)} [this machine]")
    parser.add_argument("--length", type=int, metavar="N", help="short for data.max_length=N")
    parser.add_argument("--optim", metavar="NAME", help="short for optim=NAME: adamw_8bit, adafactor, muon, ...")
    parser.add_argument("--flops", metavar="RATE", help="operations per second at best, such as 400T [measured on CPU]")
    parser.add_argument("--efficiency", type=float, default=0.4, metavar="SHARE", help="of them that is reached [0.4]")
    plan_ranks.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="all numbers, in bytes and seconds")


def run(args: argparse.Namespace, command: str) -> int:
    """Plans and shows the table."""
    from honed.cli.console import quiet_libraries
    from honed.cli.train import divide
    from honed.model.plan_optimizers import DEFAULT
    from honed.recipe import load_recipe
    from honed.train.optimizers.optimizers import known_optimizer

    quiet_libraries()
    path, changes = divide(args.items)
    changes += [f"model='{args.model}'"] if args.model else []
    changes += [f"data.max_length={args.length}"] if args.length is not None else []
    changes += [f"optim={args.optim}"] if args.optim else []
    recipe = load_recipe(path, changes)
    known_optimizer(recipe.train.get("optim", DEFAULT))
    if not 0 < args.efficiency <= 1:
        raise RecipeError(f"--efficiency is {args.efficiency}.", fix="give a share above 0, up to 1")
    on = machine(args.gpu, args.flops)
    choices = choices_for(recipe, on, efficiency=args.efficiency, own=path is not None or bool(args.items))
    over = None if args.gpus is None else plan_ranks.cluster(args, on)
    ranked = [] if over is None else plan_ranks.rank_choices(choices, on, over, efficiency=args.efficiency)
    if args.json:
        print(as_json(recipe, on, choices, ranked))
        return 0
    print(as_text(recipe, on, choices, efficiency=args.efficiency))
    if over is not None:
        print("", plan_ranks.heading(over), "", *aligned(plan_ranks.table(ranked)), "", sep="\n")
        print(*plan_ranks.notes(over), sep="\n")
    return 0


def machine(gpu: str | None, flops: str | None) -> Machine:
    """The machine that is planned for; this one unless a GPU is named.

    Raises:
        RecipeError: no such GPU, or a size that cannot be read.
    """
    rate = None if flops is None else read_rate(flops)
    if gpu is None:
        return _this_machine(rate)
    if gpu.lower() in GPUS:
        gigabytes, peak = GPUS[gpu.lower()]
        return Machine(device="cuda", memory=gigabytes * 1e9, flops=rate or peak, says=f"{gpu} ({gigabytes} GB)")
    return Machine(device="cuda", memory=read_size(gpu), flops=rate, says=f"a GPU with {gpu}")


def read_size(text: str) -> float:
    """Bytes: "24GB" is 24 * 10^9, "24GiB" is 24 * 2^30, a number alone is GB.

    Raises:
        RecipeError: it is neither a size nor a GPU that is known.
    """
    found = SIZE.match(text.strip())
    if found is None or float(found[1]) == 0:
        raise RecipeError(f"--gpu is {text!r}.", fix=f"give a size such as 24GB, or one of {', '.join(GPUS)}")
    unit = (found[2] or "G").upper()
    return float(found[1]) * (2.0 ** (10 * ("KMGT".index(unit) + 1)) if found[3] else UNITS[unit])


def read_rate(text: str) -> float:
    """Operations per second: "400T" is 4e14.

    Raises:
        RecipeError: it cannot be read.
    """
    found = RATE.match(text.strip())
    if found is None or float(found[1]) == 0:
        raise RecipeError(f"--flops is {text!r}.", fix="give operations per second, such as 400T or 4e14")
    return float(found[1]) * UNITS.get(found[2].upper(), 1.0)


def choices_for(recipe: Recipe, on: Machine, *, efficiency: float, own: bool) -> list[Choice]:
    """The recipe's own way first if there is one, then all others, from the one that needs most to the least.

    Of those with checkpointing in some layers, the one with the fewest that fits is shown.
    """
    from honed.model.plan_checkpointing import fewest, with_layers

    jobs = _by_method(recipe, on)
    mine = _own(recipe, jobs, on)
    choices = {"your recipe": mine} if own else {}
    for method, job in jobs.items():
        if method == "qlora" and on.device != "cuda" and not own:
            continue  # it saves memory, but CPUs are slow at it
        wanted = replace(job, rows=job.rows if own else 1)
        choices[method], layers = with_layers(wanted, 0), job.sizes.layers
        least = fewest(wanted, on.memory)
        if least.fits and 0 < least.layers < layers:
            choices[f"{method}, checkpointing {least.layers} of {layers} layers"] = least.job
        choices[f"{method}, checkpointing"] = with_layers(wanted, layers)
    return [_choice(name, job, on, efficiency) for name, job in choices.items()]


def as_json(recipe: Recipe, on: Machine, choices: list[Choice], ranked: list[RankChoice]) -> str:
    """All numbers; those for several GPUs where they are planned."""
    sizes = choices[0].job.sizes
    content = {
        "model": recipe.model,
        "parameters": sizes.parameters,
        "formulas_checked_for_this_family": sizes.read,
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
    """The table of choices, the parts of the best one, and the recipe's lines for it."""
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
        lines += [f"Nothing fits. The least is {least.name}, with {_gb(least.found.peak)} GB:", *_parts(least)]
        if least.longest:
            lines.append(f"It would fit with rows of up to {least.longest:,} tokens: --length {least.longest}")
    return "\n".join([*lines, "", *_notes(on, sizes, efficiency), *_optimizer_notes(on, choices)])


def best(choices: list[Choice]) -> Choice:
    """The first that fits: one's own, else the one that trains most with the least recomputation."""
    return next(choice for choice in choices if choice.fits)


def _by_method(recipe: Recipe, on: Machine) -> dict[str, Job]:
    """The recipe trained in each way, in the number formats that honed would choose."""
    from honed.model import plan
    from honed.recipe import LoraRecipe

    plain = replace(recipe, dtype=None, quantization=None)
    full = plan.job_of(replace(plain, lora=None), device=on.device)
    lora = plan.job_of(replace(plain, lora=recipe.lora or LoraRecipe()), device=on.device)
    return {"full": full, "lora": lora, "qlora": plan.quantized(lora, recipe.quantization or "nf4")}


def _own(recipe: Recipe, jobs: Mapping[str, Job], on: Machine) -> Job:
    from honed.model import plan
    from honed.model.plan_activations import formats_of
    from honed.model.plan_checkpointing import fewest

    method = "full" if recipe.lora is None else "lora" if recipe.quantization is None else "qlora"
    job = replace(jobs[method], formats=formats_of(method, device=on.device, dtype=recipe.dtype))
    if recipe.train.get("gradient_checkpointing") != "auto":
        return job
    budget = recipe.train.get("memory_budget")
    return fewest(job, on.memory if budget is None else budget * plan.GB).job


def _choice(name: str, job: Job, on: Machine, efficiency: float) -> Choice:
    from honed.model import plan
    from honed.model.plan_time import seconds_per_step

    return Choice(
        name=name,
        job=job,
        found=plan.estimate(job),
        fits=plan.fits(job, on.memory),
        longest=plan.largest(job, on.memory),
        rows=plan.largest(job, on.memory, field="rows"),
        seconds=None if on.flops is None else seconds_per_step(job, on.flops, efficiency=efficiency),
    )


def _this_machine(rate: float | None) -> Machine:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        peak = next((flops for name, (_, flops) in GPUS.items() if _alike(name, properties.name)), None)
        memory, says = float(properties.total_memory), f"{properties.name} ({_gb(properties.total_memory)} GB)"
        return Machine(device="cuda", memory=memory, flops=rate or peak, says=says)
    import psutil

    from honed.model.plan_time import cpu_flops

    memory = float(psutil.virtual_memory().total)
    return Machine(
        device="cpu", memory=memory, flops=rate or cpu_flops(), says=f"this CPU ({_gb(memory)} GB of memory)"
    )


def _alike(known: str, name: str) -> bool:
    return all(part.removesuffix("gb") in name.lower() for part in known.split("-"))


def _table(choices: list[Choice]) -> list[str]:
    rows = [("", "peak", "fits", "longest row", "tokens/micro-batch", "time/step")]
    rows += [
        (
            choice.name,
            f"{_gb(choice.found.peak)} GB",
            "yes" if choice.fits else "no",
            f"{choice.longest:,}" if choice.longest else "-",
            f"{choice.rows * choice.job.length:,}" if choice.rows else "-",
            "?" if choice.seconds is None else _seconds(choice.seconds),
        )
        for choice in choices
    ]
    return aligned(rows)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines, the first column to the left and all others to the right."""
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
    lines += [f"  {name:12} {_gb(size):>8} GB" for name, size in parts.items() if size]
    return [*lines, f"  {'sum':12} {_gb(choice.found.peak):>8} GB"]


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


def _optimizer_notes(on: Machine, choices: list[Choice]) -> list[str]:
    from honed.model.plan_optimizers import paged_bytes

    job = next((choice for choice in choices if choice.fits), choices[-1]).job
    notes = [f"Optimizer: {job.optimizer.doubt}."] if job.optimizer.doubt else []
    if on.device == "cuda" and (size := paged_bytes(job.optimizer, job.trained, weight=job.trained_format)):
        notes.append(f"{job.optimizer.name}: {_gb(size)} GB of its state, counted here, can go to the host's memory.")
    return notes


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f}"


def _number(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _seconds(seconds: float) -> str:
    return (
        f"{seconds * 1000:.0f} ms"
        if seconds < 1
        else f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
    )
