"""A tokenizer as text: what its library stores, and everything else that determines its ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from honed.errors import first_line

_States = dict[int, tuple[Any, str]]
_kept: ContextVar[_States | None] = ContextVar("kept", default=None)
# Attributes about a tokenizer's origin, padding and messages. `_tokenizer` is in `state_of`.
_NOT_OF_IDS = {
    "_tokenizer", "name_or_path", "init_kwargs", "init_inputs", "files_loaded", "padding_side", "verbose",
    "deprecation_warnings",
}  # fmt: skip


class NoStateError(Exception):
    """A tokenizer's behaviour cannot be determined from its contents; the message says why."""


@contextmanager
def states_kept() -> Iterator[None]:
    """Makes `state_of` compute each state only once within the block, in which tokenizers must not be changed."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def state_of(tokenizer: Any) -> str:
    """Returns the JSON of a fast tokenizer; with a large vocabulary this takes a tenth of a second.

    Raises:
        NoStateError: a part of it is Python code.
    """
    known = _kept.get()
    if known is None:
        return _json_of(tokenizer)
    if id(tokenizer) not in known:  # the tokenizer is kept too, because ids of deleted objects are reused
        known[id(tokenizer)] = tokenizer, _json_of(tokenizer)
    return known[id(tokenizer)][1]


def all_of(tokenizer: Any) -> Iterator[str]:
    """Yields everything that determines how a tokenizer encodes texts and messages, as texts.

    The library's JSON contains vocabulary, merges, normalizer, pre-tokenizer, post-processor and the added tokens with
    their flags; what transformers adds depends on the class and its attributes.

    Raises:
        NoStateError: it is not one of transformers' fast tokenizers, or has attributes that are not plain values.
    """
    own = type(tokenizer)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise NoStateError(f"{own.__name__} is not a fast tokenizer")
    if own.__module__.partition(".")[0] != "transformers":
        raise NoStateError(f"{own.__name__} is not one of transformers' own tokenizers, and its code may change")
    yield f"{own.__module__}.{own.__qualname__}"
    state = state_of(tokenizer)
    yield state[max(state.find('"added_tokens"'), 0) :]  # omits truncation and padding, which any call may set
    attributes = {name: value for name, value in vars(tokenizer).items() if name not in _NOT_OF_IDS}
    try:
        yield json.dumps(attributes, sort_keys=True, default=_plain)
    except TypeError as error:
        raise NoStateError(f"{own.__name__} holds something that cannot be compared: {first_line(error)}") from None


def _json_of(tokenizer: Any) -> str:
    try:
        return str(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # the library has no exception class
        raise NoStateError(f"{type(tokenizer).__name__} cannot be stored: {first_line(error)}") from error


def _plain(value: Any) -> Any:
    if type(value).__name__ == "AddedToken":
        return repr(value)  # includes all its flags
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    raise TypeError(f"{type(value).__name__}")
