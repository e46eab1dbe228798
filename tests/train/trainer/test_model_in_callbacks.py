"""What a callback does with the model in the midst of training: copies and files of it are whole and plain."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import TrainerCallback

from honed.ops import products
from honed.train.trainer.trainer import SFTTrainer


class Keep(TrainerCallback):
    """Copies, pickles and saves the model after each step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.copied = copy.deepcopy(model)
        self.pickled = pickle.loads(pickle.dumps(model))
        model.save_pretrained(self.folder)
        assert all(isinstance(m, nn.Linear) for name, m in model.named_modules() if name.endswith("q_proj.base_layer"))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("breaks", [False, True])
def test_copies_outlive_the_training(  # noqa: PLR0917
    lora: bool, breaks: bool, make: Callable[..., SFTTrainer], chat_rows: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    keep = Keep(tmp_path / "kept")
    peft_config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False) if lora else None
    trainer = make(
        chat_rows, max_steps=1, gradient_checkpointing=False, peft_config=peft_config, trainer={"callbacks": [keep]}
    )
    kinds = [type(module) for module in trainer.model.modules()]
    if breaks:
        monkeypatch.setattr(trainer, "log", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.train()
    else:
        trainer.train()
    assert [type(module) for module in trainer.model.modules()] == kinds
    ids = torch.arange(3, 40)[None]
    expected = trainer.model.eval()(input_ids=ids).logits
    for other in (keep.copied, keep.pickled):
        assert products.FastLinear not in {type(module) for module in other.modules()}
        torch.testing.assert_close(other.eval()(input_ids=ids).logits, expected, atol=1e-9, rtol=1e-9)
    assert any((tmp_path / "kept").glob("*.safetensors"))
