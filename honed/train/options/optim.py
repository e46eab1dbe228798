"""`optim` and `optim_args`: transformers' optimizers by name, and those that honed adds."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import ExplicitEnum

from honed.errors import RecipeError
from honed.model.plan.optimizers import Optimizer, named_values, optimizer_for
from honed.recipe import suggest

ADAMW = ("adamw_torch", "adamw_torch_fused")


class Own(ExplicitEnum):
    """Optimizers that transformers 5.23 lacks; `SFTConfig.optim` is one of these or an `OptimizerNames`."""

    MUON = "muon"


def known_optimizer(name: Any) -> OptimizerNames | Own:
    """Returns the optimizer with this name.

    Raises:
        RecipeError: there is no such optimizer.
    """
    value = getattr(name, "value", name)
    known = {kind.value: kind for kind in (*OptimizerNames, *Own)}
    if value not in known:
        raise RecipeError(f"optim is {value!r}, which is not a known optimizer.", fix=suggest(str(value), known))
    return known[value]


def rounds_stochastically(args: TrainingArguments) -> bool:
    """Whether AdamW rounds bfloat16 weights stochastically; the option has the name that torchao's optimizers use."""
    rounds = named_values(args.optim_args).get("bf16_stochastic_round", "").lower() == "true"
    return args.optim.value in ADAMW and rounds


def planned(args: TrainingArguments, *, in_backward: bool) -> Optimizer:
    """Returns the planner's description of the optimizer."""
    return optimizer_for(args.optim.value, args.optim_args, decays=args.weight_decay > 0, in_backward=in_backward)
