"""The load-balancing loss of mixture-of-experts models.

The model computes it from its router logits (Switch Transformer, arXiv:2101.03961, equations 4 to 6), over the tokens
of a micro-batch without padding. It is not a sum over tokens, so it depends on how rows are batched. In a step, each
micro-batch is weighted by its share of the token weight.
"""

from __future__ import annotations

from typing import Any

from honed.errors import ModelError, RecipeError

# Their configurations have a coefficient, but the transformers classes do not compute this loss.
WITHOUT_BALANCE = frozenset(("llama4_text",))


def aux_loss_coefficient(config: Any, asked: float | None) -> float:
    """The factor of the auxiliary loss; 0 to leave it out.

    Args:
        config: the model's text configuration.
        asked: `router_aux_loss_coef` of the training arguments; None for the model's own.

    Raises:
        RecipeError: the coefficient is negative, or set for a model without a router.
    """
    has_router = hasattr(config, "output_router_logits") and config.model_type not in WITHOUT_BALANCE
    # MiniMind's and Doge's configurations have the attribute for dense models too
    has_router = has_router and getattr(config, "use_moe", True) and getattr(config, "is_moe", True)
    if asked and not has_router:
        raise RecipeError(
            f"router_aux_loss_coef={asked}, but a {config.model_type} model has no router logits to balance.",
            fix="leave router_aux_loss_coef out",
        )
    coefficient = getattr(config, "router_aux_loss_coef", 0.0) if asked is None else asked
    if coefficient < 0:
        raise RecipeError(f"router_aux_loss_coef={coefficient} is negative.", fix="0.001 to 0.01 are common values")
    return float(coefficient) if has_router else 0.0


def aux_loss_of(output: Any) -> Any:
    """The unweighted auxiliary loss in a model's output.

    Raises:
        ModelError: the model returned none although its router logits were requested.
    """
    loss = getattr(output, "aux_loss", None)
    if loss is None:
        raise ModelError(
            "The model was asked for its router logits but gave no auxiliary loss.", fix="set router_aux_loss_coef=0"
        )
    return loss
