"""A tokenizer's JSON is made once while that is asked for, and anew afterwards."""

from __future__ import annotations

import copy
from typing import Any

from honed.data.encode.tokenizer_state import state_of, states_kept


def test_it_is_made_once_while_states_are_kept(tiny_tokenizer: Any) -> None:
    tokenizer, other = copy.deepcopy(tiny_tokenizer), copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["<|other|>"])
    with states_kept():
        first = state_of(tokenizer)
        assert state_of(tokenizer) is first == tokenizer.backend_tokenizer.to_str()
        assert state_of(other) == other.backend_tokenizer.to_str() != first
    tokenizer.add_tokens(["<|new|>"])
    assert state_of(tokenizer) == tokenizer.backend_tokenizer.to_str() != first
    with states_kept():
        assert state_of(tokenizer) == tokenizer.backend_tokenizer.to_str()
