"""TRL's names for a model's arguments: the same fields, and what is made of them."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import pytest
import torch

from honed.errors import RecipeError
from honed.train.options.model_config import ModelConfig, get_kbit_device_map, get_peft_config, get_quantization_config

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed: pip install 'honed[bench]'")
@pytest.mark.filterwarnings("ignore")
def test_fields_are_trls() -> None:
    from trl import ModelConfig as Theirs

    assert dataclasses.asdict(ModelConfig()) == dataclasses.asdict(Theirs())


def test_older_names_can_be_read() -> None:
    """The guide to TRL 0.19 builds the keywords of from_pretrained from these."""
    arguments = ModelConfig(model_name_or_path="facebook/opt-350m", attn_implementation=None, dtype="bfloat16")
    assert getattr(torch, arguments.torch_dtype) is torch.bfloat16
    assert arguments.trust_remote_code is False


def test_one_target_is_a_pattern() -> None:
    assert ModelConfig(lora_target_modules=["all-linear"]).lora_target_modules == "all-linear"
    assert ModelConfig(lora_target_modules=["q_proj", "v_proj"]).lora_target_modules == ["q_proj", "v_proj"]


def test_peft_config() -> None:
    assert get_peft_config(ModelConfig()) is None
    config = get_peft_config(
        ModelConfig(use_peft=True, lora_r=4, lora_alpha=9, use_dora=True, use_rslora=True, lora_modules_to_save=["x"])
    )
    assert (config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (4, 9, 0.05, "CAUSAL_LM")
    assert (config.use_dora, config.use_rslora, config.modules_to_save, config.bias) == (True, True, ["x"], "none")
    assert config.target_modules is None
    experts = ModelConfig(use_peft=True, lora_dropout=0.0, lora_target_parameters=["experts.down_proj"])
    assert get_peft_config(experts).target_parameters == ["experts.down_proj"]


@needs_bitsandbytes
def test_quantization_config() -> None:
    assert get_quantization_config(ModelConfig()) is None
    four = get_quantization_config(ModelConfig(load_in_4bit=True, dtype="bfloat16", use_bnb_nested_quant=True))
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert four.bnb_4bit_compute_dtype is torch.bfloat16
    assert get_quantization_config(ModelConfig(load_in_8bit=True)).load_in_8bit
    assert get_quantization_config(ModelConfig(load_in_4bit=True, dtype="auto")).bnb_4bit_compute_dtype is torch.float32
    with pytest.raises(RecipeError, match="both set"):
        ModelConfig(load_in_4bit=True, load_in_8bit=True)


def test_device_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert get_kbit_device_map() is None
