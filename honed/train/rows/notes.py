"""Notes on the training rows: what they train that was not chosen, and what they leave untrained."""

from __future__ import annotations

from typing import Any

import numpy as np

from honed.data.batch.table import PackedRows
from honed.data.encode.render import mode_of
from honed.data.example import Conversation, RowError
from honed.data.mix.mixture import as_mixture
from honed.data.prepare.options import PrepareOptions, reading_of
from honed.data.read.formats import read_example
from honed.data.read.sources import read_rows
from honed.model.adapters.adapters import adapter_config, has_adapter
from honed.model.load.chat_tokens import new_token_rows, template_tokens
from honed.train.forward.seams import base_model
from honed.train.options.config import SFTConfig

TOKENS_NAMED = 8
USER_TURNS_TRAINED = (
    "Conversations are trained in full, user turns too, because nothing else was chosen and TRL does so. "
    "assistant_only_loss=True (or train_on_responses_only) trains only the answers; completion_only_loss=False keeps "
    "this as it is, without the note."
)


def notes_on_user_turns(dataset: Any, args: SFTConfig, options: PrepareOptions) -> list[str]:
    """Returns the note if `args` choose no mask and the first row is a conversation that is trained whole.

    Args:
        dataset: the dataset that was prepared; one that can be read only once is empty now, and gives no note.
        options: the options that it was prepared with.
    """
    if args.train_on is not None or args.assistant_only_loss or args.completion_only_loss is not None:
        return []
    found = next(iter(read_rows(as_mixture(dataset).parts[0].data)), None)
    if found is None:
        return []
    source, row = found
    try:
        example = read_example(row, source, reading_of(options), format=options.format)
    except RowError:  # reported when rows are prepared
        return []
    return (
        [USER_TURNS_TRAINED]
        if isinstance(example, Conversation) and mode_of(example, options.train_on) == "all"
        else []
    )


def notes_on_new_tokens(model: Any, tokenizer: Any, rows: Any) -> list[str]:
    """Returns notes on added tokens with untrained embeddings if only an adapter is trained.

    The chat template's tokens are trained with the adapter (see `ready_to_train`). Other tokens in the rows are known
    only when the rows are prepared, after the adapter is attached.

    Args:
        rows: the training rows; there are no notes for streamed and unprepared ones.
    """
    if not isinstance(rows, PackedRows) or not has_adapter(model) or _is_trained(model):
        return []
    found = set(np.flatnonzero(np.bincount(rows.table.input_ids)).tolist()) & set(tokenizer.added_tokens_decoder)
    asked = found - set(template_tokens(tokenizer)) - _trained_rows(model)
    untrained = new_token_rows(base_model(model), asked) if asked else []
    if not untrained:
        return []
    more = ["..."] if len(untrained) > TOKENS_NAMED else []
    named = ", ".join([*tokenizer.convert_ids_to_tokens(untrained[:TOKENS_NAMED]), *more])
    return [
        f"the rows hold {len(untrained):,} added tokens ({named}) whose embeddings look untrained, and the adapter "
        "does not train them. To train them: "
        f"LoraConfig(trainable_token_indices={sorted(_trained_rows(model) | set(untrained))})"
    ]


def _is_trained(model: Any) -> bool:
    """Whether the whole embedding is trained, or has its own adapter."""
    embedding = base_model(model).get_input_embeddings()
    return not _trained_rows(model) and any(p.requires_grad for p in embedding.parameters())


def _trained_rows(model: Any) -> set[int]:
    """Returns the ids whose embeddings the adapter trains."""
    given = getattr(adapter_config(model), "trainable_token_indices", None) or {}
    return {i for ids in (given.values() if isinstance(given, dict) else [given]) for i in ids}
