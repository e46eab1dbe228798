"""A run that resumes with other settings trains with these, not with the checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer


class Watch(TrainerCallback):
    """Notes what each step is taken with."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, list[tuple[float, float, Any]]]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        groups = kwargs["optimizer"].param_groups
        self.steps.append((state.global_step, [(g["lr"], g["weight_decay"], g["betas"]) for g in groups]))


@pytest.fixture
def run(tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: Any, tmp_path: Path) -> Callable[..., Watch]:
    def train(out: str, resumed: str | None = None, **options: Any) -> Watch:
        watch = Watch()
        torch.manual_seed(0)
        trainer = SFTTrainer(
            tiny_model("llama"),
            args=SFTConfig(
                output_dir=str(tmp_path / out), use_cpu=True, report_to="none", max_length=128, disable_tqdm=True,
                per_device_train_batch_size=2, **{"warmup_steps": 0, "lr_scheduler_type": "linear", **options},
            ),
            train_dataset=chat_rows,
            eval_dataset=chat_rows[:3],
            processing_class=tiny_tokenizer,
            callbacks=[watch],
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resumed and str(tmp_path / resumed))
        return watch

    return train


def test_the_settings_given_on_resuming_hold(run: Callable[..., Watch]) -> None:
    run("first", learning_rate=0.01, max_steps=4, save_strategy="steps", save_steps=4)
    changed = {"learning_rate": 0.002, "weight_decay": 0.1, "adam_beta2": 0.95}
    watch = run("second", "first/checkpoint-4", max_steps=10, **changed)
    for step, groups in watch.steps:
        rate = 0.002 * (10 - step) / 10
        assert [lr for lr, _, _ in groups] == pytest.approx([rate] * len(groups), rel=1e-12)
        assert {decay for _, decay, _ in groups} == {0.1, 0.0}
        assert {betas for _, _, betas in groups} == {(0.9, 0.95)}
    assert [step for step, _ in watch.steps] == [4, 5, 6, 7, 8, 9]


def test_a_schedule_that_keeps_its_rate_says_so(run: Callable[..., Watch], caplog: pytest.LogCaptureFixture) -> None:
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2}
    run("first", learning_rate=0.01, max_steps=2, save_strategy="steps", save_steps=2, **plateau)
    run("second", "first/checkpoint-2", learning_rate=0.002, max_steps=4, **plateau)
    assert "learning_rate=0.002 has no effect" in caplog.text


def test_settings_that_change_the_loss_or_the_rows_are_reported(
    run: Callable[..., Watch], caplog: pytest.LogCaptureFixture
) -> None:
    saved = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    run("first", **saved)
    run("same", "first/checkpoint-2", max_steps=3)
    assert "there" not in caplog.text.replace("max_steps is 2 there", "")
    changes = {"loss_type": "dft", "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1}}
    run("other", "first/checkpoint-2", max_steps=3, accelerator_config={"use_seedable_sampler": False}, **changes)
    assert "loss_type is 'nll' there, 'dft' here. The rest of the run uses the new value." in caplog.text
    assert "lr_scheduler_kwargs is None there, {'num_cycles': 1} here" in caplog.text
    assert "use_seedable_sampler is None there, False here. The run continues, but is no longer the same" in caplog.text
