"""Answers that end with a marker which is no special token: `<|im_end|>` in letters is trained, and shown to users.

A template for other tokenizers (ChatML on Llama's) puts it there. The answers still stop: EOS is put behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from honed.data.batch.table import TokenTable
from honed.data.example import Conversation, Message, RowError, Source
from honed.data.templates.view import Template, special_tokens
from honed.errors import HonedError

_MARKER = re.compile(r"<[|｜][^<>|｜\s]{1,40}[|｜]>|<(?:start|end)_of_turn>")
_ANSWER = "Because."
_PROBE = Conversation(
    messages=(Message(role="user", content="Why?"), Message(role="assistant", content=_ANSWER)),
    source=Source(file="probe", row=0),
)
_LAST = 64  # tokens; a marker in letters has fewer
_LOOKED_AT = 100  # documents


def spelled_ends(template: Template | None, tokenizer: Any) -> list[str]:
    """Returns the markers behind a short answer that are no special tokens; none if the template refuses it."""
    try:
        views = template.views(_PROBE, train_on="assistant") if template is not None else []
    except (HonedError, RowError):
        return []
    trained = "".join(piece.text[piece.head :] for view in views for piece in view.pieces if piece.weight)
    known = set(special_tokens(tokenizer))
    return [marker for marker in dict.fromkeys(_MARKER.findall(trained.rpartition(_ANSWER)[2])) if marker not in known]


def notes_on_ends(templates: Iterable[Template | None], tokenizer: Any, table: TokenTable) -> list[str]:
    """Returns a note for each such marker that is trained.

    A tokenizer has its template even where no row is a conversation, so the first documents are looked at.
    """
    markers = list(dict.fromkeys(marker for template in templates for marker in spelled_ends(template, tokenizer)))
    if not markers:
        return []
    first = [table.row([n]) for n in range(min(len(table), _LOOKED_AT))]
    tails = [tail_of(row.input_ids, row.weights, tokenizer) for row in first]
    return [_note(marker) for marker in markers if any(marker in tail for tail in tails)]


def tail_of(input_ids: np.ndarray, weights: np.ndarray, tokenizer: Any) -> str:
    """Returns the text of the last trained tokens of a document: int32 ids and float32 weights, both of shape (T,)."""
    return str(tokenizer.decode(input_ids[weights > 0][-_LAST:].tolist()))


def _note(marker: str) -> str:
    return (
        f"the chat template ends answers with {marker!r}, which is no special token of this tokenizer: it is trained "
        f"as text, and answers will show it. To make it the end token, set add_tokens=[{marker!r}] and "
        f"eos_token={marker!r}; or take a template that was made for this tokenizer"
    )
