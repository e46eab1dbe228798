"""SFTConfig: TRL's names and defaults, and how they become preparation options."""

from pathlib import Path
from typing import Any

import pytest

from honed.errors import RecipeError
from honed.train.config import SFTConfig


def config(tmp_path: Path, **changes: Any) -> SFTConfig:
    return SFTConfig(output_dir=str(tmp_path), use_cpu=True, **changes)


def test_defaults_are_trls(tmp_path: Path) -> None:
    args = config(tmp_path)
    assert (args.learning_rate, args.logging_steps, args.num_train_epochs) == (2e-5, 10, 3)
    options = args.prepare_options()
    assert (options.max_length, options.packing, options.overlong, options.train_on) == (
        1024,
        False,
        "truncate",
        "completion",
    )


@pytest.mark.parametrize(
    ("changes", "train_on"),
    [
        ({}, "completion"),
        ({"completion_only_loss": True}, "completion"),
        ({"completion_only_loss": False}, "all"),
        ({"assistant_only_loss": True}, "assistant"),
        ({"train_on": "last"}, "last"),
        ({"train_on": "last", "assistant_only_loss": True}, "last"),
    ],
)
def test_what_is_trained(tmp_path: Path, changes: dict[str, Any], train_on: str) -> None:
    assert config(tmp_path, **changes).prepare_options().train_on == train_on


def test_contradicting_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="exclude each other"):
        config(tmp_path, assistant_only_loss=True, train_on="all").prepare_options()


@pytest.mark.parametrize(("eval_packing", "expected"), [(None, True), (False, False)])
def test_evaluation_packing_follows_unless_told(tmp_path: Path, eval_packing: bool | None, expected: bool) -> None:
    args = config(tmp_path, packing=True, eval_packing=eval_packing)
    assert args.prepare_options().packing and args.prepare_options(evaluation=True).packing is expected


def test_what_the_device_cannot_do_is_not_asked_for(tmp_path: Path) -> None:
    import torch

    args = config(tmp_path)
    assert args.bf16 is (torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    assert args.dataloader_pin_memory is torch.cuda.is_available()


def test_the_template_file_wins(tmp_path: Path) -> None:
    assert config(tmp_path, chat_template_path="x.jinja").prepare_options().template == "x.jinja"
