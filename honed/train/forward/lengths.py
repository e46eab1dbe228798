"""How long rows may be for a model: limits of its positions, and rotations that depend on the longest row."""

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


def notes_on_rotations(model: nn.Module, max_length: int | None) -> list[str]:
    """Returns a note if rows of up to `max_length` tokens (None: any length) change each other's positions."""
    limit = _rotations_change_after(base_model(model).config.get_text_config())
    if limit is None or (max_length is not None and max_length <= limit):
        return []
    return [
        f"A row longer than {limit:,} tokens changes how this model rotates positions in all rows of its batch: "
        f"losses depend on which rows share a batch. Set max_length={limit} for losses that do not."
    ]


def _rotations_change_after(config: Any) -> int | None:
    """The length beyond which rotary positions depend on the longest row in the batch or so far; None: never."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]  # one, or one per layer type
    for kind in kinds:
        if kind.get("rope_type") in ("dynamic", "longrope"):
            return int(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
    return None
