"""Tokens of the user's own in the rows: what becomes of them is told where they would not be learnt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from honed.model.adapters.adapters import lora_config
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

MINE = ["<answer>", "</answer>"]


@pytest.fixture
def grown(tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., tuple[Any, Any]]:
    """A model and its tokenizer with tokens of one's own, as transformers' guide has it: add, then resize."""

    def grow(*, special: bool, tied: bool = True) -> tuple[Any, Any]:
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.add_tokens(MINE, special_tokens=special)
        model = tiny_model(vocab_size=len(tiny_tokenizer), tie_word_embeddings=tied)
        model.resize_token_embeddings(len(tokenizer))
        return model, tokenizer

    return grow


def rows() -> list[dict[str, Any]]:
    answer = f"{MINE[0]}yes{MINE[1]}"
    return [{"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": answer}]}] * 4


@pytest.fixture
def trained(
    quick: dict[str, Any], grown: Callable[..., tuple[Any, Any]]
) -> Callable[..., tuple[SFTTrainer, list[int]]]:
    """A trainer of rows that spell these tokens, and their ids."""

    def make(peft_config: Any = None, **how: Any) -> tuple[SFTTrainer, list[int]]:
        model, tokenizer = grown(**how)
        args = SFTConfig(**quick, train_on="assistant", max_steps=2)
        trainer = SFTTrainer(
            model, args, train_dataset=rows(), processing_class=tokenizer, peft_config=copy.deepcopy(peft_config)
        )
        return trainer, tokenizer.convert_tokens_to_ids(MINE)

    return make


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_that_leaves_them_untrained_is_told_and_the_advice_trains_them(
    tied: bool, trained: Callable[..., Any]
) -> None:
    trainer, ids = trained(lora_config(r=2), special=False, tied=tied)
    assert set(ids) <= set(trainer.train_dataset[0]["input_ids"])
    [note] = [n for n in trainer.notes if "look untrained" in n]
    assert "<answer>, </answer>" in note and f"trainable_token_indices={ids}" in note
    advised = lora_config(r=2)
    advised.trainable_token_indices = ids
    trainer, _ = trained(advised, special=False, tied=tied)
    assert not any("look untrained" in n for n in trainer.notes)
    trainer.train()
    embedding = trainer.model.get_base_model().get_input_embeddings()
    changed = (embedding.weight != embedding.token_adapter.base_layer.weight).any(-1).nonzero().flatten()
    assert changed.tolist() == ids


@pytest.mark.parametrize("config", [None, lora_config(modules_to_save=["embed_tokens", "lm_head"])])
def test_nothing_is_told_where_the_embedding_is_trained(config: Any, trained: Callable[..., Any]) -> None:
    trainer, ids = trained(config, special=False)
    assert not any("look untrained" in n for n in trainer.notes)
    before = trainer.model.get_input_embeddings().weight[ids].clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.get_input_embeddings().weight[ids])


def test_special_ones_in_messages_are_text_and_that_is_told(trained: Callable[..., Any]) -> None:
    trainer, ids = trained(special=True)
    assert not set(ids) & set(trainer.train_dataset[0]["input_ids"])
    [note] = [n for n in trainer.notes if "encoded as plain text" in n]
    assert "4 rows" in note and "tokenizer.add_tokens" in note
