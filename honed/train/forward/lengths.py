"""Lowers the default `max_length` to what the tokenizer and the model's positions allow."""

from __future__ import annotations

from typing import Any

from torch import nn

from honed.data.prepare.options import lowered_length
from honed.errors import RecipeError
from honed.train.forward.seams import base_model
from honed.train.options.config import SFTConfig


def fit_length(args: SFTConfig, model: nn.Module, tokenizer: Any) -> list[str]:
    """Lowers the default `max_length` in honed's copy of `args` to the limits of tokenizer and model; returns notes.

    Args:
        tokenizer: its `model_max_length` limits only the default.

    Raises:
        RecipeError: `max_length` was set to more than the model's positions.
    """
    positions = learned_positions(model)
    args.max_length, notes = lowered_length(args.max_length, tokenizer, positions)
    if positions is None or args.skips_preparation:
        return notes
    if args.max_length is None or args.max_length > positions:
        raise RecipeError(
            f"max_length is {args.max_length}, and this model has learned {positions:,} positions: "
            "it has no embedding for a longer row's end.",
            fix=f"set max_length={positions} or less; data.overlong chooses what happens to longer rows",
        )
    return notes


def learned_positions(model: nn.Module) -> int | None:
    """Returns the number of learned position embeddings (GPT-2, OPT, ...); None if positions are computed (RoPE)."""
    inner = base_model(model)
    limit = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
    tokens = inner.get_input_embeddings()
    tables = (module for module in inner.modules() if isinstance(module, nn.Embedding) and module is not tokens)
    # OPT's table has two extra rows before the first position
    return limit if any(table.num_embeddings - (limit or 0) in (0, 2) for table in tables) else None
