"""Wrong arguments of optimizer and schedule are reported when the trainer is made, not after the model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer
from transformers.training_args import OptimizerNames

from honed.errors import RecipeError
from honed.train.options.config import SFTConfig
from honed.train.options.optim import _OPTIONS, check_optim_args
from honed.train.trainer.trainer import SFTTrainer

ABSENT = "/no/such/model"  # it would be an error of its own


def config(tmp_path: Path, **changes: Any) -> SFTConfig:
    return SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 1}}, r"'cycles'\n  fix: .*takes num_cycles"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr or min_lr_rate"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}}, "must be smaller than"),
        ({"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 0}}, "division by zero"),
        ({"learning_rate": -1.0}, "Invalid learning rate: -1.0"),
        ({"adam_beta2": 95}, "Invalid beta parameter"),
        ({"optim": "sgd", "optim_args": "momentum=high"}, "'high'"),
        ({"optim": "sgd", "optim_args": "nesterov=true"}, "Nesterov momentum requires"),
        ({"optim": "sgd", "optim_args": "momentum"}, "name=value"),
        ({"optim": "sgd", "optim_args": {"momentum": 0.9}}, "name=value"),
        ({"optim": "adamw_torch_npu_fused"}, "failed to import"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        SFTTrainer(ABSENT, args=config(tmp_path, **changes))


def test_a_package_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.trainer_optimizer.is_schedulefree_available", lambda *version: False)
    with pytest.raises(RecipeError, match=r"pip install schedulefree(.|\n)*fix: install the package"):
        SFTTrainer(ABSENT, args=config(tmp_path, optim="schedule_free_adamw"))


def test_settings_that_are_not_used(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, chat_rows: Any) -> None:
    """The caller's optimizer and schedule, or a subclass's, may take other settings."""
    args = config(tmp_path, lr_scheduler_type="cosine", lr_scheduler_kwargs={"my_own": 1})
    model = tiny_model()
    own = torch.optim.SGD(model.parameters(), lr=0.1)

    class Mine(SFTTrainer):
        def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
            return None

    given = {"args": args, "train_dataset": chat_rows, "processing_class": tiny_tokenizer}
    schedule = torch.optim.lr_scheduler.ConstantLR(own)
    assert SFTTrainer(model, **given, optimizers=(own, schedule)).optimizer is own
    Mine(model, **given)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rmsprop", "adafactor", "adamw_torch", "ademamix", "lion_8bit"])
def test_options_that_an_optimizer_does_not_read(name: str, tmp_path: Path) -> None:
    """transformers' own answer: an option that it reads changes what the optimizer is made with."""
    if name in ("ademamix", "lion_8bit"):
        pytest.importorskip("bitsandbytes")
    every = sorted({option for options in _OPTIONS.values() for option in options} - {"bf16_stochastic_round"})
    plain = Trainer.get_optimizer_cls_and_kwargs(config(tmp_path, optim=name))
    for option in every:
        args = config(tmp_path, optim=name, optim_args=f"{option}=1")
        ignored = Trainer.get_optimizer_cls_and_kwargs(args) == plain
        assert bool(check_optim_args(args)) == ignored, option


def test_every_listed_optimizer_exists() -> None:
    for name in _OPTIONS:
        assert any(name in known.value for known in OptimizerNames)


def test_a_misspelled_option(tmp_path: Path) -> None:
    assert check_optim_args(config(tmp_path, optim="sgd", optim_args="mometum=0.9, dampening=0.1")) == [
        "mometum in optim_args has no effect: optim='sgd' takes momentum, dampening, weight_decay, nesterov."
    ]
    assert check_optim_args(config(tmp_path, optim="adamw_torch", optim_args="bf16_stochastic_round=True")) == []
    assert check_optim_args(config(tmp_path, optim="muon", optim_args="momentum=0.9")) == []
