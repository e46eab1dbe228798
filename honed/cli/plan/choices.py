"""The ways to train that a plan compares: their memory and time on a machine, and the room they leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from honed.cli.machine import Machine

if TYPE_CHECKING:
    from honed.model.plan.job import Job
    from honed.model.plan.plan import Estimate
    from honed.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to train, with its memory, its time and the room it leaves."""

    name: str
    job: Job
    found: Estimate
    fits: bool
    longest: int
    rows: int
    seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """The values for --json."""
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


def choices_for(recipe: Recipe, on: Machine, *, efficiency: float, own: bool) -> list[Choice]:
    """The recipe's own way first, if there is one, then all others, from most to least memory.

    Of the ways with checkpointing in some layers, the one with the fewest such layers that fits is listed.
    """
    from honed.model.plan.checkpointing import fewest, with_layers

    jobs = _by_method(recipe, on)
    mine = _own(recipe, jobs, on)
    choices = {"your recipe": mine} if own else {}
    for method, job in jobs.items():
        if method == "qlora" and on.device != "cuda" and not own:
            continue  # saves memory, but is slow on CPUs
        wanted = replace(job, rows=job.rows if own else 1)
        choices[method], layers = with_layers(wanted, 0), job.sizes.layers
        least = fewest(wanted, on.memory)
        if least.fits and 0 < least.layers < layers:
            choices[f"{method}, checkpointing {least.layers} of {layers} layers"] = least.job
        choices[f"{method}, checkpointing"] = with_layers(wanted, layers)
    return [_choice(name, job, on, efficiency) for name, job in choices.items()]


def best(choices: list[Choice]) -> Choice:
    """The first that fits: the user's own, else the one that trains most with the least recomputation."""
    return next(choice for choice in choices if choice.fits)


def _by_method(recipe: Recipe, on: Machine) -> dict[str, Job]:
    """The recipe trained with each method, in the dtypes that honed would choose."""
    from honed.model.plan import plan
    from honed.recipe import LoraRecipe

    plain = replace(recipe, dtype=None, quantization=None)
    full = plan.job_of(replace(plain, lora=None), device=on.device)
    lora = plan.job_of(replace(plain, lora=recipe.lora or LoraRecipe()), device=on.device)
    return {"full": full, "lora": lora, "qlora": plan.quantized(lora, recipe.quantization or "nf4")}


def _own(recipe: Recipe, jobs: Mapping[str, Job], on: Machine) -> Job:
    from honed.model.plan import plan
    from honed.model.plan.activations import formats_of
    from honed.model.plan.checkpointing import fewest

    method = "full" if recipe.lora is None else "lora" if recipe.quantization is None else "qlora"
    job = replace(jobs[method], formats=formats_of(method, device=on.device, dtype=recipe.dtype))
    if recipe.train.get("gradient_checkpointing") != "auto":
        return job
    budget = recipe.train.get("memory_budget")
    return fewest(job, on.memory if budget is None else budget * plan.GB).job


def _choice(name: str, job: Job, on: Machine, efficiency: float) -> Choice:
    from honed.model.plan import plan
    from honed.model.plan.step_time import seconds_per_step

    return Choice(
        name=name,
        job=job,
        found=plan.estimate(job),
        fits=plan.fits(job, on.memory),
        longest=plan.largest(job, on.memory),
        rows=plan.largest(job, on.memory, field="rows"),
        seconds=None if on.flops is None else seconds_per_step(job, on.flops, efficiency=efficiency),
    )
