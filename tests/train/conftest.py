"""What the tests of training share: arguments for quick runs, a trainer on a tiny model, a model in a folder."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

Trainers = Callable[..., SFTTrainer]


@pytest.fixture(autouse=True, scope="session")
def quick_collections() -> None:
    """Each `train()` collects garbage; what the imports left would be looked through each time, for most of a test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def heard() -> None:
    """Undoes `quiet_libraries`, which is meant to last as long as the process."""
    logging.getLogger("honed").setLevel(logging.NOTSET)


@pytest.fixture
def quick(tmp_path: Path) -> dict[str, Any]:
    """Arguments of a run that leaves nothing behind and says nothing."""
    return {
        "output_dir": str(tmp_path / "out"), "use_cpu": True, "report_to": "none", "save_strategy": "no",
        "max_length": 128, "logging_steps": 1, "disable_tqdm": True,
    }  # fmt: skip


@pytest.fixture
def make(tiny_model: Callable[..., Any], tiny_tokenizer: Any, quick: dict[str, Any]) -> Trainers:
    """Makes a trainer: exact arithmetic and plain steps, unless `changes` (of SFTConfig) say otherwise."""

    def make_trainer(rows: Any, *, model: Any = None, trainer: dict[str, Any] | None = None, **changes: Any):
        options = {
            **quick, "train_on": "assistant", "lr_scheduler_type": "constant", "optim": "sgd",
            "learning_rate": 0.05, "max_grad_norm": 0.0,
        }  # fmt: skip
        own = {key: changes.pop(key) for key in ("eval_dataset", "peft_config") if key in changes}
        return SFTTrainer(
            model if model is not None else tiny_model(dtype=torch.float64),
            args=SFTConfig(**{**options, **changes}),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
            **own,
            **(trainer or {}),
        )

    return make_trainer


@pytest.fixture
def chat_trainer(tiny_tokenizer: Any, quick: dict[str, Any], chat_rows: list[Any]) -> Trainers:
    """Makes a trainer of this model's answers in the chat rows, which are evaluated on, too."""

    def make_trainer(model: Any, peft_config: Any = None, *, tokenizer: Any = tiny_tokenizer, **changes: Any):
        return SFTTrainer(
            model,
            args=SFTConfig(**{**quick, "train_on": "assistant", **changes}),
            train_dataset=chat_rows,
            eval_dataset=chat_rows,
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return make_trainer


@pytest.fixture
def folder(tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., str]:
    """Saves a tiny model with its tokenizer; gives the folder, which stands for a model's name."""

    def save(family: str = "llama", **changes: Any) -> str:
        place = tmp_path / family
        tiny_model(family, **changes).save_pretrained(place)
        tiny_tokenizer.save_pretrained(place)
        return str(place)

    return save
