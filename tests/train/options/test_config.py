"""SFTConfig: TRL's names and defaults, and how they become preparation options."""

import copy
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments

from honed.errors import RecipeError
from honed.train.options.config import SFTConfig

# Defaults that differ from TRL's, and why.
ON_PURPOSE = {
    "bf16",  # the same None, but resolved by what the device can do
    "dataloader_pin_memory",  # only where there is a GPU
    "label_names",  # what Trainer would find out itself
    "pad_token",  # no longer deprecated
}


def config(tmp_path: Path, **changes: Any) -> SFTConfig:
    return SFTConfig(output_dir=str(tmp_path), use_cpu=True, **changes)


def default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def test_every_option_of_trl_is_here_with_its_default() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("trl.trainer.sft_config", reason="TRL is not installed").SFTConfig
    ours = {field.name: default(field) for field in dataclasses.fields(SFTConfig)}
    for field in dataclasses.fields(theirs):
        assert field.name in ours
        if field.name not in ON_PURPOSE:
            assert ours[field.name] == default(field), field.name


def test_defaults_are_trls(tmp_path: Path) -> None:
    args = config(tmp_path)
    assert (args.learning_rate, args.logging_steps, args.num_train_epochs) == (2e-5, 10, 3)
    assert args.gradient_checkpointing and args.pad_to_multiple_of is None
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
    with pytest.raises(RecipeError, match="are mutually exclusive"):
        config(tmp_path, assistant_only_loss=True, train_on="all").prepare_options()


@pytest.mark.parametrize(("eval_packing", "expected"), [(None, True), (False, False)])
def test_evaluation_packing_follows_unless_told(tmp_path: Path, eval_packing: bool | None, expected: bool) -> None:
    args = config(tmp_path, packing=True, eval_packing=eval_packing)
    assert args.prepare_options().packing and args.prepare_options(evaluation=True).packing is expected


@pytest.mark.parametrize(
    ("on_cpu", "native", "expected"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_what_the_device_cannot_do_is_not_asked_for(
    on_cpu: bool, native: bool, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch emulates bfloat16 on a T4, and counts that as support."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)  # which would look at the GPU
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=on_cpu)
    assert args.bf16 is expected and args.dataloader_pin_memory is not on_cpu


def test_the_template_file_wins(tmp_path: Path) -> None:
    file = tmp_path / "x.jinja"
    file.write_text("{{ messages }}")
    assert config(tmp_path, chat_template_path=str(file)).prepare_options().template == str(file)
    assert config(tmp_path, chat_template_path="owner/model").prepare_options().template == "auto"


@pytest.mark.parametrize(
    ("value", "expected"), [("auto", None), ("None", None), ("64", 64), (8, 8), (None, None)], ids=str
)
def test_multiples_as_texts(tmp_path: Path, value: Any, expected: int | None) -> None:
    assert config(tmp_path, pad_to_multiple_of=value).pad_to_multiple_of == expected


def test_a_multiple_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="pad_to_multiple_of"):
        config(tmp_path, pad_to_multiple_of="many")


@pytest.mark.parametrize("on", [True, False])
def test_checkpointing_has_one_value_under_both_names(tmp_path: Path, on: bool) -> None:
    args = config(tmp_path, gradient_checkpointing=on, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert args.gradient_checkpointing is on and args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    if hasattr(args, "activation_checkpointing"):  # its name in newer releases of transformers
        assert args.activation_checkpointing is on
        assert config(tmp_path, activation_checkpointing=on).gradient_checkpointing is on


def test_a_command_line_fills_it(tmp_path: Path) -> None:
    line = ["--output_dir", str(tmp_path), "--use_cpu", "--max_length", "99", "--packing", "--dataset_kwargs"]
    line += [json.dumps({"skip_prepare_dataset": True}), "--model_init_kwargs", json.dumps({"dtype": "bfloat16"})]
    [args] = HfArgumentParser(SFTConfig).parse_args_into_dataclasses(line)
    assert (args.max_length, args.packing, args.skips_preparation) == (99, True, True)
    assert args.model_init_kwargs == {"dtype": "bfloat16"} and args.columns == {}


def test_it_is_copied_and_compared_like_any_dataclass(tmp_path: Path) -> None:
    args = config(tmp_path, max_seq_length=9)
    assert copy.deepcopy(args).to_dict() == args.to_dict()
    assert dataclasses.replace(args, max_length=8).max_length == 8


def test_numbers_written_as_text(tmp_path: Path) -> None:
    """PyYAML reads 2e-5 as text, and scripts pass what it reads."""
    args = config(tmp_path, learning_rate="2e-5", adam_beta2="0.95", warmup_steps="0.1", max_grad_norm="1.0")
    assert (args.learning_rate, args.adam_beta2, args.warmup_steps, args.max_grad_norm) == (2e-5, 0.95, 0.1, 1.0)
    with pytest.raises(RecipeError, match=r"weight_decay is 'none'\.\n  fix: set a number"):
        config(tmp_path, weight_decay="none")


def test_no_clipping(tmp_path: Path) -> None:
    assert config(tmp_path, max_grad_norm=None).max_grad_norm == 0.0
