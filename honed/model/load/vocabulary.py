"""Special tokens: a pad token that exists, ids that agree everywhere, and stop tokens that were trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")


def with_pad_token(tokenizer: Any) -> Any:
    """The tokenizer itself if it has a pad token, else a copy that pads with EOS (padding is masked by length)."""
    if tokenizer.pad_token_id is not None:
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.pad_token = changed.eos_token if changed.eos_token is not None else changed.convert_ids_to_tokens(0)
    return changed


def agree_on_special_tokens(model: Any, tokenizer: Any) -> None:
    """Gives the model's config and generation config the tokenizer's bos, eos and pad, so that all three agree.

    Args:
        model: both of its configs are changed; a role that the tokenizer does not have is left as it is.
    """
    places = [model.config.get_text_config(), getattr(model, "generation_config", None)]
    for role in ROLES:
        token_id = getattr(tokenizer, role)
        for place in places:
            if place is not None and token_id is not None:
                setattr(place, role, token_id)


def agree_on_stops(model: Any, tokenizer: Any, stop_ids: Sequence[int]) -> None:
    """Makes generation stop at every token that ends a trained turn, and pad with the tokenizer's pad token.

    Args:
        model: its `generation_config` is changed; it is part of what is trained and saved.
        stop_ids: ids at which trained turns end.
    """
    config = model.generation_config
    known = config.eos_token_id
    before = [known] if isinstance(known, int) else list(known or [])
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    merged = list(dict.fromkeys([*stop_ids, *before, *own]))
    if merged:
        config.eos_token_id = merged[0] if len(merged) == 1 else merged
    if tokenizer.pad_token_id is not None:
        config.pad_token_id = tokenizer.pad_token_id
