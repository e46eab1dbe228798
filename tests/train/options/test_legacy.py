"""Old names of options and arguments: taken, put in their place, and told of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from honed.errors import RecipeError
from honed.train.options import legacy
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

OLD_VALUES: dict[str, Any] = {
    "max_seq_length": 77, "use_liger": True, "evaluation_strategy": "steps", "warmup_ratio": 0.1, "no_cuda": True,
    "per_gpu_train_batch_size": 3, "per_gpu_eval_batch_size": 5, "push_to_hub_token": "t", "push_to_hub_model_id": "m",
    "group_by_length": True, "adafactor": True, "include_inputs_for_metrics": True,
}  # fmt: skip
NEW_VALUES: dict[str, Any] = {
    "train_sampling_strategy": "group_by_length", "optim": "adafactor", "include_for_metrics": ["inputs"],
}  # fmt: skip


@pytest.mark.parametrize("old", legacy.RENAMED)
def test_an_old_name_sets_the_new_option(old: str, tmp_path: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path), **{old: OLD_VALUES[old]})
    new = legacy.RENAMED[old].new
    assert getattr(args, new) == NEW_VALUES.get(new, OLD_VALUES[old])
    assert args.old_names == [f"{old} is called {new} now."]


@pytest.mark.parametrize("old", legacy.WITHOUT_EFFECT)
def test_an_option_without_successor_is_told_of(old: str, tmp_path: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path), **{old: 1})
    assert args.to_dict() == SFTConfig(output_dir=str(tmp_path)).to_dict()
    assert len(args.old_names) == 1 and args.old_names[0].startswith(f"{old} has no effect: ")


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"packing_strategy": "bfd-requeue"}, "packing_strategy", "bfd_split"),
        ({"packing_strategy": "ffd"}, "packing_strategy", "bfd"),
        ({"loss_type": "chunked_nll"}, "loss_type", "nll"),
        ({"optim": "adamw_hf"}, "optim", "adamw_torch"),
    ],
)
def test_old_values_are_taken(given: dict[str, str], name: str, value: str, tmp_path: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path), **given)
    assert getattr(args, name) == value and len(args.old_names) == 1


@pytest.mark.parametrize("old", legacy.RENAMED)
def test_an_old_name_can_be_set_and_read_afterwards(old: str, tmp_path: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path))
    setattr(args, old, OLD_VALUES[old])
    new = legacy.RENAMED[old].new
    assert getattr(args, old) == getattr(args, new) == NEW_VALUES.get(new, OLD_VALUES[old])
    assert args.old_names == [f"{old} is called {new} now."]
    assert old not in args.to_dict()


def test_a_dataclass_below(
    folder: Callable[..., str], tiny_tokenizer: Any, quick: dict[str, Any], chat_rows: list[dict[str, Any]]
) -> None:
    """Scripts add fields of their own to SFTConfig, and set options where TRL's examples once did: afterwards."""

    @dataclass
    class Mine(SFTConfig):
        benchmark: str = "none"

    args = Mine(**quick, benchmark="some")
    args.max_seq_length = 9
    trainer = SFTTrainer(folder(), args=args, train_dataset=chat_rows, processing_class=tiny_tokenizer)
    assert max(len(row["input_ids"]) for row in trainer.train_dataset) == 9
    assert trainer.args.benchmark == "some" and "max_seq_length is called max_length now." in trainer.notes


def test_names_that_never_were_are_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'max_length'"):
        SFTConfig(output_dir=str(tmp_path), max_lenght=5)
    with pytest.raises(RecipeError, match="did you mean 'per_device_train_batch_size'"):
        SFTConfig(output_dir=str(tmp_path), batch_size=5)
    with pytest.raises(RecipeError, match=r"peft_config=peft\.LoraConfig"):
        SFTConfig(output_dir=str(tmp_path), lora_rank=5)
    with pytest.raises(RecipeError, match="given twice"):
        SFTConfig(output_dir=str(tmp_path), max_length=5, max_seq_length=6)


def test_the_constructor_still_shows_its_options() -> None:
    names = list(inspect.signature(SFTConfig).parameters)
    assert names[0] == "output_dir" and "max_length" in names and "max_seq_length" not in names


def test_a_trainer_of_trl_0_12_is_taken(
    folder: Callable[..., str], tiny_tokenizer: Any, quick: dict[str, Any], chat_rows: list[dict[str, Any]]
) -> None:
    """Everything that SFTTrainer took as arguments of its own before TRL 0.13."""
    from transformers import TrainingArguments

    rows = [{"body": f"why {n} yes"} for n in range(6)]
    plain = {key: value for key, value in quick.items() if key != "max_length"}
    trainer = SFTTrainer(
        folder(),
        args=TrainingArguments(**plain, max_steps=1),
        train_dataset=rows,
        tokenizer=tiny_tokenizer,
        dataset_text_field="body",
        max_seq_length=16,
        packing=True,
        eval_packing=False,
        neftune_noise_alpha=5,
        model_init_kwargs={"torch_dtype": "bfloat16"},
        dataset_num_proc=None,
        dataset_batch_size=1000,
        num_of_sequences=1024,
        chars_per_token=3.6,
    )
    trainer.train()
    assert str(trainer.model.dtype) == "torch.bfloat16" and trainer.processing_class is tiny_tokenizer
    assert (trainer.args.max_length, trainer.args.packing, trainer.args.neftune_noise_alpha) == (16, True, 5)
    told = " ".join(trainer.notes)
    for name in ("tokenizer", "max_seq_length", "packing", "dataset_batch_size", "chars_per_token", "torch_dtype"):
        assert name in told


@pytest.mark.parametrize(
    ("old", "match"),
    [
        ({"tokenizer": object(), "processing_class": object()}, "are one argument"),
        ({"model_init": lambda: None}, "does not take model_init"),
        ({"load_in_8bit": True}, "BitsAndBytesConfig"),
        ({"train_datset": []}, "did you mean 'train_dataset'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    old: dict[str, Any], match: str, folder: Callable[..., str], quick: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match=match):
        SFTTrainer(folder(), args=SFTConfig(**quick), **old)
