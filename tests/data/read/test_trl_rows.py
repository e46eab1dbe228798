"""TRL's functions on rows: the same answers as TRL's own where it is installed, and nothing changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import honed
from honed.errors import DataError

USER, ANSWER = {"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}
ROWS: list[dict[str, Any]] = [
    {"messages": [USER, ANSWER], "source": "x"},
    {"prompt": [USER]},
    {"prompt": [USER, {"role": "assistant", "content": "I say: "}]},
    {"prompt": [USER], "completion": [ANSWER]},
    {"prompt": "why", "completion": "yes"},
    {"text": "plain"},
    {"messages": [USER, ANSWER], "chat_template_kwargs": {"who": "me"}},
    {"conversations": [{"from": "human", "value": "why"}, {"from": "gpt", "value": "yes"}]},
    {"conversations": [USER, ANSWER], "id": 3},
]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.filterwarnings("ignore")
def test_answers_are_trls(row: dict[str, Any], tiny_tokenizer: Any) -> None:
    trl = pytest.importorskip("trl.data_utils")
    before = copy.deepcopy(row)
    assert honed.is_conversational(row) == trl.is_conversational(row)
    assert honed.is_conversational_from_value(row) == trl.is_conversational_from_value(row)
    applied = honed.maybe_apply_chat_template(row, tiny_tokenizer)
    assert applied == trl.maybe_apply_chat_template(row, tiny_tokenizer)
    if honed.is_conversational(row):
        assert honed.apply_chat_template(row, tiny_tokenizer) == applied
    assert honed.maybe_convert_to_chatml(row) == trl.maybe_convert_to_chatml(copy.deepcopy(row))
    assert row == before


def test_texts_of_a_row(tiny_tokenizer: Any) -> None:
    made = honed.apply_chat_template({"prompt": [USER], "completion": [ANSWER]}, tiny_tokenizer)
    prompt = "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n"
    assert made == {"prompt": prompt, "completion": "yes<|im_end|>\n"}
    with pytest.raises(DataError, match="this one has chosen, prompt"):
        honed.apply_chat_template({"prompt": [USER], "chosen": [ANSWER]}, tiny_tokenizer)
    with pytest.raises(DataError, match="ends with a turn of 'system'"):
        honed.apply_chat_template({"prompt": [{"role": "system", "content": "x"}]}, tiny_tokenizer)
