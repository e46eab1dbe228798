"""The JSON of a tokenizer is made once where it is said not to change, and anew everywhere else."""

from __future__ import annotations

import copy
from typing import Any

from honed.data.tokenizer_state import state_of, unchanged


def test_it_is_made_once_inside_the_block_and_for_this_tokenizer_only(tiny_tokenizer: Any) -> None:
    tokenizer, other = copy.deepcopy(tiny_tokenizer), copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["fox"])
    with unchanged(tokenizer):
        before = state_of(tokenizer)
        assert before == tokenizer.backend_tokenizer.to_str()
        assert state_of(tokenizer) is before
        assert state_of(other) == other.backend_tokenizer.to_str() != before
    tokenizer.add_tokens(["hen"])
    assert state_of(tokenizer) == tokenizer.backend_tokenizer.to_str() != before
