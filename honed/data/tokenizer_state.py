"""A tokenizer as JSON: made once for all that ask while it does not change, as it takes a tenth of a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_unchanged: ContextVar[tuple[Any, list[str]] | None] = ContextVar("unchanged", default=None)


@contextmanager
def unchanged(tokenizer: Any) -> Iterator[None]:
    """Says that the tokenizer stays as it is inside the block."""
    token = _unchanged.set((tokenizer.backend_tokenizer, []) if hasattr(tokenizer, "backend_tokenizer") else None)
    try:
        yield
    finally:
        _unchanged.reset(token)


def state_of(tokenizer: Any) -> str:
    """The JSON of a fast tokenizer's backend: vocabulary, merges, and all that happens before and after."""
    backend = tokenizer.backend_tokenizer
    known = _unchanged.get()
    if known is None or known[0] is not backend:
        return str(backend.to_str())
    if not known[1]:
        known[1].append(backend.to_str())
    return known[1][0]
