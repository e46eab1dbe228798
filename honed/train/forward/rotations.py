"""Detects rotary positions that depend on the longest row of a batch, and warns about them."""

from __future__ import annotations

from typing import Any

from torch import nn

from honed.train.forward.seams import base_model


def rotation_notes(model: nn.Module, max_length: int | None) -> list[str]:
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
