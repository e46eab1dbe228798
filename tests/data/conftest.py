"""Tokenizers with other chat templates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tokenizer_with(tiny_tokenizer: Any) -> Callable[..., Any]:
    """A copy of the tiny tokenizer with this template, more special tokens, and changed names (`eos_token=...`)."""
    from tokenizers import AddedToken

    def make(template: str | None, *, special: tuple[str, ...] = (), **names: Any) -> Any:
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        tokenizer.chat_template = template
        for name, token in names.items():
            setattr(tokenizer, name, token)
        return tokenizer

    return make
