"""Which optimizer a run has: transformers' own by name, or one of honed's, which it makes for transformers' Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.training_args import OptimizerNames
from transformers.utils import ExplicitEnum

from honed.errors import RecipeError
from honed.recipe import suggest
from honed.train.optimizers.muon import make_muon, muon_options, summary
from honed.train.optimizers.precision import rounds_stochastically
from honed.train.optimizers.step_in_backward import AdamWInBackward
from honed.train.optimizers.stochastic_rounding import StochasticRoundingAdamW

if TYPE_CHECKING:
    from honed.train.options.config import SFTConfig


class Own(ExplicitEnum):
    """Optimizers that transformers 5.23 does not have; `SFTConfig.optim` is one of these or of `OptimizerNames`."""

    MUON = "muon"


def known_optimizer(name: Any) -> OptimizerNames | Own:
    """The optimizer of that name.

    Raises:
        RecipeError: there is none.
    """
    value = getattr(name, "value", name)
    known = {kind.value: kind for kind in (*OptimizerNames, *Own)}
    if value not in known:
        raise RecipeError(f"optim is {value!r}, which is no optimizer.", fix=suggest(str(value), known))
    return known[value]


def optimizer_of(args: SFTConfig, model: Any, given: Any, notes: list[str]) -> Any:
    """The class (or factory) and keywords that transformers makes the optimizer of; the caller's where it is its own.

    Args:
        given: the trainer's `optimizers` and `optimizer_cls_and_kwargs`.
        notes: gets what the user should know.

    Raises:
        RecipeError: it is one of honed's, and the caller gives an optimizer as well; Muon cannot train this.
    """
    rounds = rounds_stochastically(args)
    if given[0][0] is not None or given[1] is not None:
        if args.optimizer_in_backward or rounds:
            raise RecipeError(
                "optimizer_in_backward and bf16_stochastic_round are AdamW's; an optimizer of your own has neither.",
                fix="leave one of them out",
            )
        return given[1]
    options = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    if args.optimizer_in_backward:
        way = {"rounding_seed": args.seed} if rounds else {"fused": args.optim.value == "adamw_torch_fused"}
        return AdamWInBackward, {**options, **way}
    if rounds:
        return StochasticRoundingAdamW, {**options, "seed": args.seed}
    if args.optim is not Own.MUON:
        return None
    notes.append(summary(model))
    muon = muon_options(args.optim_args)
    return _factory, {**options, "weight_decay": args.weight_decay, "options": muon}


def _factory() -> Any:
    """transformers calls this, and what it gives with the model."""
    return make_muon
