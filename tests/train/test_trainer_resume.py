"""SFTTrainer stopped anywhere and gone on from its checkpoint ends as if it had not been: the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from honed.errors import RunError
from honed.model.adapters import lora_config
from honed.train import checkpoint
from honed.train.config import SFTConfig
from honed.train.trainer import SFTTrainer

KILLS = int(os.environ.get("HONED_KILLS", "2"))  # HONED_KILLS=20 is a soak
CLOCKS = {"tokens_per_second", "trained_tokens_per_second", "memory_gb", "seconds"} | {
    f"{name}_{what}" for name in ("train", "eval") for what in ("runtime", "samples_per_second", "steps_per_second")
}
DROPOUT: dict[str, Any] = {"lora": True, "neftune_noise_alpha": 5.0}
WAYS: dict[str, dict[str, Any]] = {
    "flat": {"logging_steps": 2, "save_steps": 1},
    "accumulated, dropout, noise": {**DROPOUT, "gradient_accumulation_steps": 2, "logging_steps": 3, "save_steps": 1},
    "packed": {"packing": True, "max_length": 64, "save_steps": 2, **DROPOUT},
    "padded": {"attention_dropout": 0.1, "padded": True, "save_steps": 1},
    "by length": {"train_sampling_strategy": "group_by_length", "padded": True, "save_steps": 1, **DROPOUT},
    "workers": {"dataloader_num_workers": 1, "save_steps": 3, **DROPOUT},
    "streamed": {"streaming": True, "max_steps": 14, "shuffle_buffer": 5, "save_steps": 1, "logging_steps": 3, **DROPOUT},
    "epochs": {"save_steps": 1, "eval_strategy": "epoch", "logging_strategy": "epoch", **DROPOUT},
    "evaluated": {"save_steps": 1, "eval_strategy": "steps", "eval_steps": 2, **DROPOUT},
}  # fmt: skip
Trainers = Callable[..., SFTTrainer]


class Break(TrainerCallback):
    """Breaks the run off in the midst of a step, as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            raise KeyboardInterrupt


@pytest.fixture
def begin(tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: Any, tmp_path: Path) -> Trainers:
    """Makes a trainer of a job; each is a new one with a new model, as after a kill."""

    def make(out: str, *callbacks: TrainerCallback, rows: Any = None, **job: Any) -> SFTTrainer:
        shape = {"attention_dropout": job.pop("attention_dropout")} if "attention_dropout" in job else {}
        padded, lora = job.pop("padded", False), job.pop("lora", False)
        options: dict[str, Any] = {
            "output_dir": str(tmp_path / out), "use_cpu": True, "report_to": "none", "save_strategy": "steps",
            "max_length": 128, "logging_steps": 1, "disable_tqdm": True, "learning_rate": 0.01, "num_train_epochs": 3,
            "per_device_train_batch_size": 2, "gradient_checkpointing": False,
        }  # fmt: skip
        if padded:
            options["dataset_kwargs"] = None
        torch.manual_seed(0)
        return SFTTrainer(
            tiny_model("gemma2" if padded else "llama", **shape),
            args=SFTConfig(**{**options, **job}),
            train_dataset=chat_rows if rows is None else rows,
            eval_dataset=chat_rows[:5],
            processing_class=tiny_tokenizer,
            peft_config=lora_config(r=2, dropout=0.2) if lora else None,
            callbacks=list(callbacks),
        )

    return make


def log_of(trainer: SFTTrainer) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in trainer.state.log_history]


def same_weights(a: SFTTrainer, b: SFTTrainer) -> bool:
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_run_ends_with_the_same_bits(way: str, begin: Trainers) -> None:
    """It breaks in its first, an early and a late step and right behind an epoch's end; each time a new one goes on."""
    job = WAYS[way]
    whole = begin("whole", **job)
    whole.train()
    total = whole.state.max_steps
    for step in sorted({1, 4, 6 * total // 9 + 1, total}):
        with pytest.raises(KeyboardInterrupt):
            begin("run", Break(step), **job).train(resume_from_checkpoint="auto")
    resumed = begin("run", **job)
    resumed.train(resume_from_checkpoint=True)
    assert log_of(resumed) == log_of(whole)
    assert same_weights(resumed, whole)
