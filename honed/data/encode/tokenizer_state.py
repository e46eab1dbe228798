"""A tokenizer as JSON, made once for several callers: for a large vocabulary it takes a tenth of a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_States = dict[int, tuple[Any, str]]
_kept: ContextVar[_States | None] = ContextVar("kept", default=None)


@contextmanager
def states_kept() -> Iterator[None]:
    """While this is open, `state_of` makes each state once; tokenizers may not be changed meanwhile."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def state_of(tokenizer: Any) -> str:
    """The JSON of a fast tokenizer."""
    known = _kept.get()
    if known is None:
        return str(tokenizer.backend_tokenizer.to_str())
    if id(tokenizer) not in known:  # the tokenizer is kept as well: ids of objects that are gone are given again
        known[id(tokenizer)] = tokenizer, str(tokenizer.backend_tokenizer.to_str())
    return known[id(tokenizer)][1]
