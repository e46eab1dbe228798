"""A tokenizer's JSON is made once while that is asked for, and anew afterwards."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from honed.data.encode.bpe_cache import cached_bpe
from honed.data.encode.encode import usual_encoder
from honed.data.encode.tokenizer_state import NoStateError, all_of, state_of, states_kept


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


class Words:
    """A pre-tokenizer in Python."""

    def pre_tokenize(self, text: Any) -> None:
        text.split(lambda _, part: part.split(" ", "isolated"))


def test_parts_in_python_have_no_state(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Words())
    with pytest.raises(NoStateError, match="cannot be stored"):
        state_of(tokenizer)
    assert cached_bpe(tokenizer, usual_encoder(tokenizer)) is None


def test_an_attribute_that_is_code_has_no_state(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.apply_chat_template = lambda *args, **kwargs: "something else"
    with pytest.raises(NoStateError, match="holds something that cannot be compared: TypeError: function"):
        list(all_of(tokenizer))
