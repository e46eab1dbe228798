"""Trained tokenizers: nothing is lost, ids and template are MiniMind's, and honed can train with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.errors import DataError, ModelError
from honed.model.minimind.tokenizer import chat_template, train_tokenizer

TEXTS = ["the quick brown fox asks why", "the slow brown dog answers: because", "为什么天空是蓝色的？因为光。"] * 5
PLAIN = train_tokenizer(TEXTS, vocab_size=320)
THINKING = train_tokenizer(TEXTS, vocab_size=320, thinking=True)
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": "because"},
    {"role": "user", "content": "the fox?"},
    {"role": "assistant", "content": "brown", "reasoning_content": "\na fox is brown\n"},
]


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    for tokenizer in (PLAIN, THINKING):
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert tokenizer.decode(ids) == text


def test_size_ids_and_words_of_the_texts() -> None:
    assert (len(PLAIN), len(THINKING)) == (320, 320)
    for tokenizer in (PLAIN, THINKING):
        assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert len(tokenizer.encode(" brown")) == 1
    assert THINKING.convert_ids_to_tokens(THINKING.encode("<think></think>")) == ["<think>", "</think>"]
    assert (
        THINKING.decode(THINKING.encode("<think>a</think><|im_end|>"), skip_special_tokens=True) == "<think>a</think>"
    )


def test_the_same_texts_give_the_same_tokenizer() -> None:
    assert train_tokenizer(iter(TEXTS), vocab_size=320).get_vocab() == PLAIN.get_vocab()


def test_saved_and_loaded(tmp_path: Path) -> None:
    PLAIN.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.encode(TEXTS[0]) == PLAIN.encode(TEXTS[0])
    assert loaded.chat_template == PLAIN.chat_template == chat_template(thinking=False)
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)


def test_fewer_tokens_where_there_is_no_more_to_merge() -> None:
    assert 259 < len(train_tokenizer(["ab ab"], vocab_size=6400)) < 270


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ModelError, match=r"258 tokens is too small\.\n  fix: take 259"):
        train_tokenizer(TEXTS, vocab_size=258)
    with pytest.raises(ModelError, match="take 261"):
        train_tokenizer(TEXTS, vocab_size=260, thinking=True)
    for texts in ([], ["", ""]):
        with pytest.raises(DataError, match="no text"):
            train_tokenizer(texts)


@pytest.mark.parametrize("options", [{}, {"open_thinking": True}])
@pytest.mark.parametrize("turns", range(1, len(TALK) + 1))
def test_the_thinking_template_writes_what_minimind_3s_does(
    turns: int, options: dict[str, Any], shared_data: Path
) -> None:
    theirs = AutoTokenizer.from_pretrained(shared_data / "minimind_tokenizer")
    for asks in (True, False):
        rendered = [
            tokenizer.apply_chat_template(TALK[:turns], tokenize=False, add_generation_prompt=asks, **options)
            for tokenizer in (theirs, THINKING)
        ]
        assert rendered[0] == rendered[1]


def test_special_tokens_are_minimind_3s(shared_data: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(shared_data / "minimind_tokenizer")
    for name in ("pad", "bos", "eos"):
        assert getattr(theirs, f"{name}_token") == getattr(PLAIN, f"{name}_token")
        assert getattr(theirs, f"{name}_token_id") == getattr(PLAIN, f"{name}_token_id")


def test_honed_trains_the_answer_and_the_token_that_ends_it() -> None:
    row = prepare([{"messages": TALK[1:3]}], PLAIN, PrepareOptions()).rows[0]
    trained = row.input_ids[row.weights > 0]
    assert PLAIN.decode(trained) == "because<|im_end|>"
    assert PLAIN.decode(row.input_ids).startswith("<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\nbecause")


def test_reasoning_is_trained_where_the_prompt_leaves_it_open_and_refused_where_it_cannot_be_shown() -> None:
    talk = [TALK[3], {**TALK[4], "reasoning_content": "a fox is brown"}]
    options = PrepareOptions(template_arguments={"open_thinking": True})
    row = prepare([{"messages": talk}], THINKING, options).rows[0]
    trained = THINKING.decode(row.input_ids[row.weights > 0])
    assert trained == "a fox is brown\n</think>\n\nbrown<|im_end|>"
    with pytest.raises(Exception, match="does not show the reasoning"):
        prepare([{"messages": talk}], PLAIN, PrepareOptions())
