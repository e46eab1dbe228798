"""`train()` called again on the same trainer, as in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer


@pytest.fixture
def make(tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: Any, tmp_path: Path) -> Callable[..., Any]:
    def trainer(optimizer: Any = None, **options: Any) -> SFTTrainer:
        model = tiny_model("llama")
        return SFTTrainer(
            model,
            args=SFTConfig(
                output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_length=128,
                per_device_train_batch_size=2, max_steps=2, logging_steps=1, save_strategy="no", learning_rate=0.01,
                warmup_steps=0, lr_scheduler_type="linear", **options,
            ),
            train_dataset=chat_rows,
            processing_class=tiny_tokenizer,
            optimizers=(optimizer and optimizer(model.parameters()), None),
        )  # fmt: skip

    return trainer


def rates_of(trainer: SFTTrainer) -> list[float]:
    trainer.train()
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


@pytest.mark.parametrize("rates", [{}, {"q_proj": 3.0}])
def test_a_learning_rate_that_was_changed_in_between_holds(make: Callable[..., Any], rates: dict[str, float]) -> None:
    trainer = make(learning_rates=rates)
    assert rates_of(trainer) == pytest.approx([0.01, 0.005])
    assert rates_of(trainer) == pytest.approx([0.01, 0.005])
    trainer.args.learning_rate = 0.0004
    assert rates_of(trainer) == pytest.approx([0.0004, 0.0002])
    peaks = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert sorted(peaks) == pytest.approx([0.0004, 0.0012] if rates else [0.0004])
    assert rates_of(trainer) == pytest.approx([0.0004, 0.0002])


def test_an_optimizer_of_the_users_keeps_its_rate(make: Callable[..., Any]) -> None:
    trainer = make(lambda weights: torch.optim.SGD(weights, lr=0.125))
    assert rates_of(trainer) == pytest.approx([0.125, 0.0625])
    trainer.args.learning_rate = 0.5
    assert rates_of(trainer) == pytest.approx([0.125, 0.0625])
