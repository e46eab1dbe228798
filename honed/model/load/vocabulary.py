"""Special tokens: a pad token, the same ids in tokenizer and model, and stop tokens that were trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")


def known_tokens(model: Any) -> int:
    """Returns the number of token ids that a model both reads and predicts; CPM-Ant's embedding has extra rows."""
    head = model.get_output_embeddings()
    rows = int(model.get_input_embeddings().weight.shape[0])
    return min(rows, getattr(head, "out_features", rows))


def with_pad_token(tokenizer: Any) -> Any:
    """Returns the tokenizer if it has a pad token, else a copy that pads with EOS (padding is masked by length)."""
    if tokenizer.pad_token_id is not None:
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.pad_token = changed.eos_token if changed.eos_token is not None else changed.convert_ids_to_tokens(0)
    return changed


def agree_on_special_tokens(model: Any, tokenizer: Any) -> None:
    """Copies the tokenizer's bos, eos and pad ids, if it has them, to the model's config and generation config."""
    places = [model.config.get_text_config(), getattr(model, "generation_config", None)]
    for role in ROLES:
        token_id = getattr(tokenizer, role)
        for place in places:
            if place is not None and token_id is not None:
                setattr(place, role, token_id)


def agree_on_stops(model: Any, tokenizer: Any, stop_ids: Sequence[int]) -> None:
    """Makes the model's generation config stop at every token of `stop_ids`, which end trained turns, and pad with the
    tokenizer's pad token."""
    config = model.generation_config
    known = config.eos_token_id
    before = [known] if isinstance(known, int) else list(known or [])
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    merged = list(dict.fromkeys([*stop_ids, *before, *own]))
    if merged:
        config.eos_token_id = merged[0] if len(merged) == 1 else merged
    if tokenizer.pad_token_id is not None:
        config.pad_token_id = tokenizer.pad_token_id
