"""float8 products, emulated: the loss falls as in bfloat16, and what is saved is plain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from honed.errors import ModelError, RecipeError
from honed.train.forward.float8 import float8_linears
from honed.train.options import rules
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

Trainers = Callable[..., SFTTrainer]
JOB: dict[str, Any] = {"optim": "adamw_torch", "learning_rate": 3e-3, "max_steps": 10, "token_metrics": False}


def test_it_is_refused_where_it_cannot_be(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="True, False or 'emulate'"):
        rules.check(SFTConfig(**quick, fp8="false"))
    monkeypatch.setattr(rules, "is_missing", lambda package: package == "torchao")
    with pytest.raises(RecipeError, match="pip install torchao"):
        rules.check(SFTConfig(**quick, fp8=True))
    monkeypatch.setattr(rules, "is_missing", lambda package: False)
    with pytest.raises(RecipeError, match="a GPU that multiplies in float8"):
        rules.check(SFTConfig(**quick, fp8=True))
    with pytest.raises(RecipeError, match="and bf16=True or float32"):
        rules.check(SFTConfig(**quick, fp8="emulate", fp16=True))


def test_which_layers(tiny_model: Callable[..., Any]) -> None:
    pytest.importorskip("torchao")
    model = tiny_model(tie_word_embeddings=False)
    before, weights = dict(model.named_modules()), [id(p) for p in model.parameters()]
    with float8_linears(model, emulate=True) as count:
        changed = {name for name, module in model.named_modules() if module is not before[name]}
        assert count == len(changed) == 2 * 7  # all of both layers; neither head nor embeddings
        assert all(name.startswith("model.layers.") for name in changed)
        assert [id(p) for p in model.parameters()] == weights
        with float8_linears(model, emulate=True) as again:
            assert again == 0
    assert dict(model.named_modules()) == before
    with pytest.raises(ModelError, match="no linear layers"), float8_linears(nn.Linear(16, 16), emulate=True):
        pass


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_the_loss_falls_as_in_bfloat16(
    adapter: bool, make: Trainers, tiny_model: Callable[..., Any], chat_rows: Any, tmp_path: Path
) -> None:
    pytest.importorskip("torchao")
    curves = []
    for way in ({"bf16": True}, {"fp8": "emulate"}):
        own: dict[str, Any] = {}
        if adapter:
            peft = pytest.importorskip("peft")
            own["peft_config"] = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = make(
            chat_rows, model=tiny_model(num_hidden_layers=1), gradient_checkpointing=False, **JOB, **way, **own
        )
        trainer.train()
        curves.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    in_bf16, in_fp8 = (torch.tensor(curve).view(5, -1).mean(1) for curve in curves)
    assert in_fp8[-1] < in_fp8[0] - (0.2 if adapter else 1)
    assert not torch.equal(in_fp8, in_bf16) and (in_fp8 - in_bf16).abs().max() < 0.15
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(next((tmp_path / "saved").glob("*.safetensors")))
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert all(type(p.data) is torch.Tensor for p in trainer.model.parameters())
