"""Adapters are attached by peft, to copies of what the caller passed, and once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from honed.errors import ModelError
from honed.model.adapters.adapters import attach, fit_config, load_with_adapter, lora_config, ready_to_train

CPU = torch.device("cpu")


def test_lora_on_every_linear_layer_but_the_head(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(tie_word_embeddings=False)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    adapted = attach(model, lora_config(r=3, alpha=5, dropout=0.25))
    suffix = ".lora_A.default"
    names = [name for name, _ in adapted.get_base_model().named_modules()]
    assert {name.removesuffix(suffix) for name in names if name.endswith(suffix)} == linear - {"lm_head"}
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert {min(p.shape) for p in trained.values()} == {3}
    assert adapted.peft_config["default"].lora_alpha == 5
    assert adapted.peft_config["default"].lora_dropout == 0.25


def test_attach_changes_no_configuration(tiny_model: Callable[..., Any]) -> None:
    config = lora_config(target_modules=["q_proj"])
    before = config.to_dict()
    adapted = attach(tiny_model(), config)
    assert config.to_dict() == before
    assert adapted.peft_config["default"] is not config


def test_no_second_adapter(tiny_model: Callable[..., Any]) -> None:
    adapted = attach(tiny_model(), lora_config())
    with pytest.raises(ModelError, match="has an adapter already"):
        attach(adapted, lora_config())


def test_the_adapter_that_is_there_may_be_asked_for_again(tiny_model: Callable[..., Any]) -> None:
    """Many scripts call `get_peft_model` and hand the configuration to the trainer as well."""
    from peft import get_peft_model

    config = lora_config()
    adapted = get_peft_model(tiny_model(), config)
    model, notes = ready_to_train(adapted, config)
    assert model is adapted and "peft_config has no effect" in notes[0]
    with pytest.raises(ModelError, match="has an adapter already"):
        ready_to_train(adapted, lora_config(r=2))


def test_no_second_adapter_on_one_that_transformers_loaded(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    model.add_adapter(lora_config())
    with pytest.raises(ModelError, match="has an adapter already"):
        attach(model, lora_config())


@pytest.mark.parametrize("wrong", [{"target_modules": ["nope"]}, {"r": 0}, {"dropout": 2.0}])
def test_an_adapter_that_does_not_fit(wrong: dict[str, Any], tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="does not fit"):
        attach(tiny_model(), lora_config(**wrong))


def test_a_saved_adapter_comes_back_on_its_base(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    model = tiny_model().from_pretrained(tmp_path / "base")
    adapted = attach(model, lora_config()).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_with_adapter(str(tmp_path / "adapter"), device=CPU, dtype=torch.float32).eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, adapted(ids).logits)
        with adapted.disable_adapter():
            assert not torch.allclose(loaded(ids).logits, adapted(ids).logits, atol=1e-2)
    assert isinstance(loaded, PeftModel)


def test_ranks_of_their_own_and_weights_outside_of_layers(tiny_model: Callable[..., Any]) -> None:
    shape = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = lora_config(
        r=2,
        alpha=4,
        target_modules=["q_proj", "v_proj"],
        target_parameters=["experts.down_proj"],
        rank_pattern={"v_proj": 5},
        alpha_pattern={r"layers\.1\..*q_proj": 3},
    )
    adapted = attach(tiny_model("qwen3_moe", **shape), config)
    ranks = {name: p.shape[0] for name, p in adapted.named_parameters() if ".lora_A." in name}
    assert {rank for name, rank in ranks.items() if "v_proj" in name} == {5}
    assert {rank for name, rank in ranks.items() if "q_proj" in name} == {2}
    assert {rank for name, rank in ranks.items() if "experts" in name} == {2 * shape["num_experts"]}
    scales = {n: m.scaling["default"] for n, m in adapted.named_modules() if n.endswith("q_proj")}
    assert sorted(scales.values()) == [3 / 2, 4 / 2]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"target_parameters": ["experts.dwn_proj"]}, "'experts.dwn_proj', but the model has no such weight"),
        ({"rank_pattern": {"vproj": 4}}, "'vproj', but the model has no such layer"),
        ({"alpha_pattern": {"(": 4}}, "not a regular expression"),
        ({"target_parameters": ["mlp.experts.down_proj"], "dropout": 0.1}, "no input to drop"),
    ],
)
def test_names_that_peft_would_pass_over(options: dict[str, Any], problem: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    with pytest.raises(ModelError, match=problem):
        attach(model, lora_config(target_modules=["q_proj"], **options))


def test_exclusions_and_layer_numbers_without_effect(tiny_model: Callable[..., Any]) -> None:
    config = lora_config(target_modules=["q_proj", "v_proj"])
    config.exclude_modules = ["v_proj", "o_porj"]
    config.layers_to_transform = [0, 7]
    notes = fit_config(tiny_model(), config)[1]
    assert [note.split(",")[0] for note in notes] == ["exclude_modules names 'o_porj'", "layers_to_transform names [7]"]
    config.exclude_modules, config.layers_to_transform = ["v_proj"], [0, 1]
    assert fit_config(tiny_model(), config)[1] == []
