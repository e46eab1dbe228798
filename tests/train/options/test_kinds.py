"""Arguments of the wrong type: each is named, before anything is loaded; what people pass rightly is let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import TrainingArguments

from honed import SFTConfig, SFTTrainer
from honed.errors import RecipeError
from honed.train.options.kinds import check_kinds


@pytest.mark.parametrize(
    ("wrong", "kind", "fix"),
    [
        ({"model": object()}, "model is of type object", "folder's or a Hub id's name"),
        ({"args": {"max_steps": 1}}, "args is of type dict", r"SFTConfig\(\*\*args\)"),
        ({"args": "out"}, "args is of type str", "an SFTConfig"),
        ({"peft_config": {"r": 4}}, "peft_config is of type dict", r"peft\.LoraConfig\(\*\*peft_config\)"),
        ({"peft_config": "lora"}, "peft_config is of type str", r"a peft\.LoraConfig"),
        ({"processing_class": "m"}, "processing_class is of type str", r"AutoTokenizer\.from_pretrained\('m'\)"),
        ({"tokenizer": "m"}, "processing_class is of type str", "AutoTokenizer"),
    ],
)
def test_an_argument_of_the_wrong_type(wrong: dict[str, Any], kind: str, fix: str) -> None:
    with pytest.raises(RecipeError, match=rf"SFTTrainer's {kind}, which cannot be used\.\n  fix: pass .*{fix}"):
        SFTTrainer(**{"model": "no/such/model", "train_dataset": [], **wrong})


@pytest.mark.parametrize("model", ["name", Path("folder"), torch.nn.Linear(1, 1)])
def test_what_is_right(model: Any, tmp_path: Path) -> None:
    check_kinds(model, None, None, None)
    check_kinds(model, SFTConfig(output_dir=str(tmp_path)), lambda texts: texts, LoraConfig())
    check_kinds(model, TrainingArguments(output_dir=str(tmp_path)), None, None)
