"""The YAML of `trl sft --config`: what its keys mean here, and its own defaults."""

from __future__ import annotations

from typing import Any

import pytest

LEAST = "model_name_or_path: owner/model\ndataset_name: owner/rows\n"


def test_a_lora_run(made: Any) -> None:
    recipe = made("""
        model_name_or_path: Qwen/Qwen2-0.5B
        dataset_name: trl-lib/Capybara
        dataset_config: en
        learning_rate: 2.0e-4
        num_train_epochs: 1
        packing: true
        max_length: 2048
        per_device_train_batch_size: 2
        gradient_accumulation_steps: 8
        eos_token: <|im_end|>
        eval_strategy: steps
        eval_steps: 100
        assistant_only_loss: true
        use_peft: true
        lora_r: 32
        lora_alpha: 16
        lora_target_modules: [all-linear]
        dtype: bfloat16
        output_dir: Qwen2-0.5B-SFT
        push_to_hub: true
    """)
    assert (recipe.model, recipe.dtype, recipe.output) == ("Qwen/Qwen2-0.5B", "bfloat16", "Qwen2-0.5B-SFT")
    data = recipe.data
    assert (data.files, data.held_out) == (("trl-lib/Capybara@en",), "trl-lib/Capybara@en:test")
    assert (data.max_length, data.packing, data.train_on, data.overlong) == (2048, True, "assistant", "truncate")
    assert recipe.lora is not None
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout) == (32, 16, 0.05)
    assert recipe.lora.target_modules == "all-linear"
    assert (recipe.train["eos_token"], recipe.train["push_to_hub"]) == ("<|im_end|>", True)
    assert (recipe.train["eval_strategy"], recipe.train["eval_steps"]) == ("steps", 100)


def test_its_defaults_where_ours_differ(made: Any) -> None:
    """Values of its SFTConfig and ModelConfig, which tests/train/options hold against the installed TRL."""
    recipe = made(LEAST)
    assert (recipe.lora, recipe.dtype) == (None, "float32")
    assert (recipe.data.max_length, recipe.data.overlong, recipe.data.train_on) == (1024, "truncate", "completion")
    expected = {
        "num_train_epochs": 3.0,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "save_strategy": "steps",
        "eval_strategy": "no",
        "seed": 42,
    }
    assert {key: recipe.train[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("max_length: null", "data.max_length", None),
        ("completion_only_loss: false", "data.train_on", "all"),
        ("use_peft: true", "lora.target_modules", ("q_proj", "v_proj")),
        ("use_peft: true\nload_in_4bit: true", "quantization", "nf4"),
        ("use_peft: true\nload_in_8bit: true", "quantization", "int8"),
        ("dataset_text_field: body", "data.text_field", "body"),
        ("packing_strategy: ffd", "data.packing_strategy", "bfd"),
        ("loss_type: dft", "train.loss_type", "dft"),
        ("dtype: auto", "dtype", None),
        ("chat_template_path: chat.jinja", "data.template", "chat.jinja"),
        ("warmup_ratio: 0.1", "train.warmup_steps", 0.1),
        ("env: {CUDA_VISIBLE_DEVICES: 0}", "lora", None),
    ],
)
def test_one_key(made: Any, line: str, key: str, value: Any) -> None:
    recipe = made(LEAST + line)
    section, _, name = key.rpartition(".")
    holder = getattr(recipe, section) if section else recipe
    assert (holder[name] if section == "train" else getattr(holder, name)) == value


def test_a_mixture(made: Any) -> None:
    data = made("""
        model_name_or_path: owner/model
        datasets:
          - {path: o/a, split: train_sft, fraction: 0.7}
          - {path: json, data_files: b.jsonl, fraction: 0.3}
        test_split_size: 0.1
        eval_strategy: epoch
    """).data
    assert data.sources == (
        {"files": "o/a:train_sft", "name": "o/a", "weight": 0.7},
        {"files": "b.jsonl", "name": "json", "weight": 0.3},
    )
    assert data.eval_share == 0.1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("truncation_mode: keep_end", "answers without their questions"),
        ("test_split_size: 100", "write a share"),
        ("chat_template_path: owner/other", "save that model's template as a file"),
        ("eval_strategy: epoch\ndataset_name: rows.jsonl", "files have no split to evaluate on"),
        ("dataset_train_split: test\ndataset_name: rows.jsonl", "rows.jsonl has no splits"),
        ("beta: 0.1", "honed does supervised fine-tuning"),
        ("packing_strategy: best", "write one of bfd, bfd_split, wrapped"),
        ("learning_rat: 1", "did you mean 'learning_rate'?"),
    ],
)
def test_what_is_not_taken(honed: Any, theirs: Any, line: str, said: str) -> None:
    least = LEAST.replace("dataset_name: owner/rows\n", "") if "dataset_name" in line else LEAST
    shown = honed("new", "recipe", theirs(least + line))
    assert (shown.status, shown.out) == (2, "")
    assert said in shown.err
    assert "theirs.yaml (TRL) has 1 key that cannot be translated" in shown.err
