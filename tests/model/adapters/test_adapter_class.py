"""An adapter is loaded on the class of the base that it was trained on, also where the base has two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from honed.errors import ModelError
from honed.model.adapters.adapter_class import trained_seeing
from honed.model.adapters.adapters import attach, load_with_adapter, lora_config
from honed.model.load.load import load_model

CPU = torch.device("cpu")
TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "layer_types": ["full_attention"],
}
VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 16,
    "num_position_embeddings": 16,
}


@pytest.fixture
def base(tmp_path: Path) -> str:
    """Qwen3.5 has a class that sees and one for text alone."""
    config = pytest.importorskip("transformers").Qwen3_5Config(text_config=TEXT, vision_config=VISION)
    from transformers import Qwen3_5ForConditionalGeneration

    torch.manual_seed(0)
    Qwen3_5ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def trained(base: str, folder: Path, *, sees: bool) -> Any:
    model = attach(
        load_model(base, device=CPU, dtype=torch.float32, with_vision=sees), lora_config(target_modules=["q_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("sees", [True, False])
def test_it_is_loaded_on_the_class_that_it_was_trained_on(base: str, tmp_path: Path, sees: bool) -> None:
    model = trained(base, tmp_path / "adapter", sees=sees)
    assert trained_seeing(str(tmp_path / "adapter"), base) is sees
    loaded = load_with_adapter(str(tmp_path / "adapter"), device=CPU, dtype=torch.float32).eval()
    assert type(loaded.get_base_model()) is type(model.get_base_model())
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
        with model.disable_adapter():
            assert not torch.allclose(loaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-2)


def test_a_base_with_one_class_is_not_asked(tmp_path: Path, tiny_model: Any) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    assert not trained_seeing(str(tmp_path / "nothing"), str(tmp_path / "base"))


def test_an_adapter_that_finds_no_layer_is_refused(base: str, tmp_path: Path) -> None:
    """peft would warn, and answer as the untrained base."""
    trained(base, tmp_path / "adapter", sees=True)
    other = load_model(base, device=CPU, dtype=torch.float32)
    with pytest.raises(ModelError, match=r"could not be loaded: .*missing adapter keys"):
        load_with_adapter(str(tmp_path / "adapter"), device=CPU, base=other)
