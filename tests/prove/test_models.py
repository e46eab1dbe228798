"""Which model is checked: whole, cut or shrunken, and always the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from honed.errors import RecipeError
from honed.prove import models
from honed.prove.engine import trained
from honed.recipe import recipe_from
from honed.train.options.config import SFTConfig

FAMILIES = {
    "llama": {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576},
    "qwen3": {"num_attention_heads": 16, "num_key_value_heads": 8, "hidden_size": 1024, "head_dim": 128},
    "gpt2": {},
    "gemma3_text": {"num_hidden_layers": 12},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 3},
    "qwen3_moe": {"num_experts": 16, "num_experts_per_tok": 8},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shrunken_copy_is_small_and_runs(family: str) -> None:
    config = AutoConfig.for_model(family, **{"vocab_size": 300, "pad_token_id": 0, **FAMILIES[family]})
    small = models.shrunken(models.exact(config))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small)
    assert model(input_ids=torch.arange(6)[None]).logits.shape == (1, 6, 300)
    assert sum(p.numel() for p in model.parameters()) < 20_000_000
    kinds = getattr(config, "layer_types", None)
    assert kinds is None or set(small.layer_types) == set(kinds)


@pytest.mark.parametrize("family", [*FAMILIES, "ernie4_5_moe"])
def test_which_models_have_experts(family: str) -> None:
    config = AutoConfig.for_model(family, **FAMILIES.get(family, {}))
    assert models.has_experts(config) is (family in ("mixtral", "qwen3_moe", "ernie4_5_moe"))


def test_dropout_is_off() -> None:
    config = models.exact(AutoConfig.for_model("gpt2"))
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.0, 0.0, 0.0)


def test_a_large_model_is_cut_or_shrunken(subject_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = subject_of(model={"num_hidden_layers": 4}, lora=None)
    assert whole.model.size == "whole" and whole.drill is whole.model
    monkeypatch.setattr(models, "WHOLE", sum(p.numel() for p in whole.model.make().parameters()) - 1)
    cut = subject_of(model={"num_hidden_layers": 4}, lora=None).model
    assert cut.size == "cut" and cut.make().config.num_hidden_layers == 2
    own, theirs = trained(cut.make()), trained(whole.model.make())
    assert all(torch.equal(own[name], theirs[name]) for name in own), "its layers have their own weights"
    monkeypatch.setattr(models, "WHOLE", 1)
    assert subject_of(lora=None).model.size == "shrunken"


def test_the_recipe_says_what_is_trained_and_which_tokens_there_are(subject_of: Callable[..., Any]) -> None:
    train = {"trainable": [r"layers\.1\.", "embed"], "add_tokens": ["<fox>"], "learning_rates": {"mlp": 3}}
    train["eos_token"] = "<fox>"
    subject = subject_of(model={"vocab_size": 322}, lora=None, train=train)  # as many as the tokenizer has
    assert all("layers.1." in name or "embed" in name for name in trained(subject.model.make()))
    new = subject.tokenizer.convert_tokens_to_ids("<fox>")
    assert subject.tokenizer.eos_token_id == new == subject.model.make().get_input_embeddings().num_embeddings - 1
    assert not train.keys() & set(subject.left_out) and subject.model.without == ()
    assert subject.arguments("out").learning_rates == {"mlp": 3}
    with pytest.raises(RecipeError, match="no parameter's name contains 'nose'"):
        subject_of(lora=None, train={"trainable": ["nose"]})


def test_weights_that_a_part_of_the_model_lacks(
    subject_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "WHOLE", 0)
    train = {"trainable": [r"layers\.3\."], "learning_rates": {r"layers\.3\.": 2}}
    subject = subject_of(model={"num_hidden_layers": 4}, lora=None, train=train)
    assert subject.model.without == ("trainable", "learning_rates") and not subject.arguments("out").learning_rates
    assert r"; without trainable: no parameter's name contains 'layers\\.3\\.'" in subject.model.words
    assert all(parameter.requires_grad for parameter in subject.model.make().parameters())


def test_copies_are_alike_and_apart(subject_of: Callable[..., Any]) -> None:
    chosen = subject_of().model
    one, other = chosen.make(), chosen.make()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(bool(p.any()) for n, p in one.named_parameters() if "lora_B" in n)
    for parameter in one.parameters():
        parameter.data.zero_()
    assert any(bool(p.any()) for p in other.parameters())


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(RecipeError, match="size is 'half'"):
        models.choose(recipe_from({}), SFTConfig(), None, size="half", device=torch.device("cpu"), dtype=torch.float64)
