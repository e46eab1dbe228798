"""Pad and stop tokens."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from honed.model.load.vocabulary import agree_on_stops, with_pad_token


def test_a_pad_token_is_left_alone(tiny_tokenizer: Any) -> None:
    assert with_pad_token(tiny_tokenizer) is tiny_tokenizer


@pytest.mark.parametrize(("eos", "expected"), [("<|im_end|>", "<|im_end|>"), (None, "<|endoftext|>")])
def test_a_missing_pad_token_is_added_to_a_copy(eos: str | None, expected: str, tiny_tokenizer: Any) -> None:
    bare = copy.deepcopy(tiny_tokenizer)
    bare.pad_token, bare.eos_token = None, eos
    padding = with_pad_token(bare)
    assert padding.pad_token == expected
    assert (bare.pad_token, bare.eos_token) == (None, eos)
    assert padding("a fox")["input_ids"] == bare("a fox")["input_ids"]
    assert len(padding) == len(bare)


@pytest.mark.parametrize(
    ("trained", "known", "eos", "expected"),
    [
        ([5, 7], None, None, [5, 7]),
        ([5], [9, 5], 2, [5, 9, 2]),  # what was trained comes first, nothing twice
        ([2], 2, 2, 2),
        ([], [9], 2, [9, 2]),
        ([], 0, None, 0),
        ([], None, None, None),
    ],
)
def test_stops_are_merged_in_order(trained: list[int], known: Any, eos: int | None, expected: Any) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=known, pad_token_id=1))
    agree_on_stops(model, SimpleNamespace(eos_token_id=eos, pad_token_id=0), trained)
    assert model.generation_config.eos_token_id == expected
    assert model.generation_config.pad_token_id == 0


def test_without_a_pad_token_the_models_own_stays() -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None, pad_token_id=1))
    agree_on_stops(model, SimpleNamespace(eos_token_id=3, pad_token_id=None), ())
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (3, 1)
