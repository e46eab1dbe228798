"""What transformers would refuse with an error of its own is told with its fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.integrations import integration_utils
from transformers.utils import is_torch_bf16_gpu_available

from honed.errors import RecipeError
from honed.recipe import recipe_from
from honed.train.options import refusals, rules
from honed.train.options.config import SFTConfig
from honed.train.run.run import training_arguments


@pytest.mark.skipif(is_torch_bf16_gpu_available(), reason="this device has bfloat16")
def test_bf16_without_a_device_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="use_cpu=True to train in bfloat16") as caught:
        SFTConfig(output_dir=str(tmp_path), bf16=True)
    assert caught.value.__suppress_context__  # nothing of transformers' insides is shown
    assert SFTConfig(output_dir=str(tmp_path), bf16=True, use_cpu=True).bf16


@pytest.mark.parametrize(
    "given",
    [
        {"bf16": True, "fp16": True, "use_cpu": True},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "epoch", "eval_steps": 5},
        {"lr_scheduler_type": "no_such_schedule"},
    ],
)
def test_other_refusals(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"These arguments cannot be used: .*\n  fix: "):
        SFTConfig(output_dir=str(tmp_path), **given)


def test_services_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration_utils, "is_comet_available", lambda: False)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    with pytest.raises(RecipeError, match="pip install tensorboard comet-ml; or set report_to='none'"):
        rules.check(SFTConfig(output_dir=str(tmp_path), report_to=["tensorboard", "comet_ml"]))
    with pytest.raises(RecipeError, match=r"unknown service: 'wandbb'\.\n  fix: did you mean 'wandb'"):
        rules.check(SFTConfig(output_dir=str(tmp_path), report_to="wandbb"))
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    refusals.need_reporters(["tensorboard"])
    refusals.need_reporters([])


def test_an_error_of_honeds_own_is_not_wrapped() -> None:
    """A RecipeError is a ValueError, too, and says already what to do."""
    train = {"use_cpu": True, "load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "epoch"}
    with pytest.raises(RecipeError) as caught:
        training_arguments(recipe_from({"model": "m", "data": {"files": "rows.jsonl"}, "train": train}))
    assert caught.value.problem.startswith("These arguments cannot be used: ")
