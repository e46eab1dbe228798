"""Training with LoRA layers as one function against training with peft's own: losses, weights, and going on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_program import make_rows

from honed.model.adapters.adapters import attach, lora_config
from honed.model.adapters.fused_lora import FusedForward
from honed.train.forward.seams import find_seams, lora_alone
from honed.train.loop import loop
from honed.train.loop.config import LoopConfig

pytest.importorskip("peft")
Models = Callable[..., Any]


@pytest.fixture
def adapted(tiny_model: Models) -> Models:
    def make(**config: Any) -> Any:
        model = attach(tiny_model(dtype=torch.float64), lora_config(r=4, **config))
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter.data, std=0.1)
        return model

    return make


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer(checkpointing: bool, make: Models, adapted: Models, chat_rows: list[Any], tmp_path: Path) -> None:
    """Stopped and resumed in the middle, with dropout, against one run through with peft's own layers."""
    own = {"optim": "adamw_torch", "learning_rate": 0.01, "max_steps": 6, "gradient_checkpointing": checkpointing}

    def trainer(**changes: Any) -> Any:
        return make(chat_rows, model=adapted(dropout=0.2), **{**own, **changes})

    theirs = trainer()
    assert theirs.seams.lora and not theirs.notes
    theirs.seams.lora = False
    theirs.train()
    saves = {"output_dir": str(tmp_path / "ours"), "save_strategy": "steps", "save_steps": 3}
    first = trainer(**saves)
    first.train()
    ours = trainer(**saves)
    ours.train(resume_from_checkpoint=str(tmp_path / "ours" / "checkpoint-3"))
    for run in (first, ours):
        assert_same(trained(run.model), trained(theirs.model))
        assert not any(isinstance(module, FusedForward) for module in run.model.modules())
    losses = [[line["loss"] for line in run.state.log_history if "loss" in line] for run in (theirs, first, ours)]
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-6) and losses[2] == pytest.approx(losses[0], rel=1e-6)


def test_loop(adapted: Models) -> None:
    rows = make_rows(10)
    config = LoopConfig(batch_size=2, epochs=2, learning_rate=0.01, log_every=1)
    lines, weights = [], []
    for fused in (True, False):
        model = adapted(dropout=0.2)
        found = find_seams(model)
        assert found.lora
        outcome = loop.train(model, rows, config, seams=replace(found, lora=fused))
        lines.append([line["loss"] for line in outcome.log if "loss" in line])
        weights.append(trained(model))
    assert lines[0] == pytest.approx(lines[1], rel=1e-6) and len(lines[0]) == 10
    assert_same(*weights)


def test_what_is_left_to_peft_is_said(make: Models, adapted: Models, chat_rows: list[Any]) -> None:
    trainer = make(chat_rows, model=adapted(use_dora=True), max_steps=1)
    assert [note for note in trainer.notes if note.startswith("14 of 14 LoRA layers")], trainer.notes
    assert not trainer.seams.lora


def test_with_a_loss_of_the_callers_own_too(make: Models, adapted: Models, chat_rows: list[Any]) -> None:
    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return outputs.logits.square().mean()

    trainer = make(chat_rows, model=adapted(), max_steps=1, trainer={"compute_loss_func": loss})
    assert trainer.seams.lora and not trainer.seams.scoring
    trainer.train()


def test_no_lora_no_seam(tiny_model: Models) -> None:
    found = lora_alone(tiny_model())
    assert not found.lora and not found.notes
