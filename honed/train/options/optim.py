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
# Optimizer, or a part of the names of several -> what is read from `optim_args`; others read nothing.
# Source: transformers/trainer_optimizer.py (5.17 and 5.23).
_FAMILIES = ("galore", "apollo", "ademamix", "schedule_free")
_OPTIONS = {
    **dict.fromkeys(ADAMW, ("bf16_stochastic_round",)),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), ("bf16_stochastic_round", "block_size")),
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
    "galore": ("rank", "update_proj_gap", "scale", "proj_type"),
    "apollo": ("rank", "update_proj_gap", "scale", "proj_type", "proj", "scale_type"),
    "ademamix": ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3"),
    "schedule_free": ("weight_lr_power", "r"),
    "stable_adamw": ("max_lr", "kahan_sum", "decouple_lr"),
    "grokadamw": ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"),
    "adamw_anyprecision": ("use_kahan_summation", "momentum_dtype", "variance_dtype", "compensation_buffer_dtype"),
}


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


def check_optim_args(args: TrainingArguments) -> list[str]:
    """Returns a note on the options in `optim_args` that the optimizer does not read.

    Raises:
        RecipeError: `optim_args` is not a list of names and values.
    """
    text, name = args.optim_args or "", args.optim.value
    if not isinstance(text, str) or any("=" not in pair for pair in text.split(",") if text):
        raise RecipeError(f"optim_args is {text!r}.", fix="write name=value,name=value, such as 'momentum=0.9'")
    if isinstance(args.optim, Own) or name.startswith("rmsprop_bnb"):  # refuse what they do not know
        return []
    known = _OPTIONS.get(next((family for family in _FAMILIES if family in name), name), ())
    unknown = [option for option in named_values(text) if option not in known]
    if not unknown:
        return []
    takes = f"takes {', '.join(known)}" if known else "takes none"
    return [f"{', '.join(unknown)} in optim_args has no effect: optim={name!r} {takes}."]


def rounds_stochastically(args: TrainingArguments) -> bool:
    """Whether AdamW rounds bfloat16 weights stochastically; the option has the name that torchao's optimizers use."""
    rounds = named_values(args.optim_args).get("bf16_stochastic_round", "").lower() == "true"
    return args.optim.value in ADAMW and rounds


def planned(args: TrainingArguments, *, in_backward: bool) -> Optimizer:
    """Returns the planner's description of the optimizer."""
    return optimizer_for(args.optim.value, args.optim_args, decays=args.weight_decay > 0, in_backward=in_backward)
