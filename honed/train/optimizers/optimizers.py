"""Chooses a run's optimizer: transformers' by name, or one of honed's, in the form that Trainer expects."""

from __future__ import annotations

from typing import Any

from honed.errors import RecipeError
from honed.train.optimizers.muon import make_muon, muon_options, note_on_muon
from honed.train.optimizers.rates import notes_on_rates
from honed.train.optimizers.step_in_backward import AdamWInBackward
from honed.train.optimizers.stochastic_rounding import StochasticRoundingAdamW
from honed.train.options.config import SFTConfig
from honed.train.options.optim import Own, rounds_stochastically


def optimizer_of(args: SFTConfig, model: Any, optimizer: Any, optimizer_cls_and_kwargs: Any) -> tuple[Any, list[str]]:
    """Trainer's `optimizer_cls_and_kwargs` (the caller's, honed's, or None for transformers' own), and notes.

    Args:
        optimizer, optimizer_cls_and_kwargs: the caller's; None for neither.

    Raises:
        RecipeError: the arguments name one of honed's and the caller passes another; Muon cannot train this model; a
            pattern in `learning_rates` matches nothing.
    """
    rounds = rounds_stochastically(args)
    notes = notes_on_rates(model, args.learning_rates)
    if optimizer is not None and args.learning_rates:
        raise RecipeError(
            "learning_rates splits the groups of honed's optimizer; yours has groups of its own.",
            fix="set the learning rates in its groups, or leave learning_rates out",
        )
    if optimizer is not None or optimizer_cls_and_kwargs is not None:
        if args.optimizer_in_backward or rounds:
            raise RecipeError(
                "optimizer_in_backward and bf16_stochastic_round are options of AdamW; your own optimizer has neither.",
                fix="leave one of them out",
            )
        return optimizer_cls_and_kwargs, notes
    options = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    if args.optimizer_in_backward:
        way = {"rounding_seed": args.seed} if rounds else {"fused": args.optim.value == "adamw_torch_fused"}
        return (AdamWInBackward, {**options, **way}), notes
    if rounds:
        return (StochasticRoundingAdamW, {**options, "seed": args.seed}), notes
    if args.optim is not Own.MUON:
        return None, notes
    notes.append(note_on_muon(model))
    muon = muon_options(args.optim_args)
    return (_factory, {**options, "weight_decay": args.weight_decay, "options": muon}), notes


def _factory() -> Any:
    """transformers calls this, and then calls the result with the model."""
    return make_muon
