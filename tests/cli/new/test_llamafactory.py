"""LLaMA-Factory's YAML: what its keys mean here, its own defaults, and its dataset_info.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

INFO = {
    "chats": {"file_name": "chats.json", "formatting": "sharegpt"},
    "openai": {
        "file_name": "openai.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "tools": "functions"},
        "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "qa": {"hf_hub_url": "someone/qa", "subset": "en", "split": "train[:5%]",
           "columns": {"prompt": "question", "response": "answer"}},
    "plain": {"file_name": "plain.json"},
    "books": {"file_name": "books.jsonl", "columns": {"prompt": "body"}},
    "pairs": {"file_name": "pairs.json", "ranking": True},
    "photos": {"file_name": "photos.json", "formatting": "sharegpt",
               "columns": {"messages": "messages", "images": "images"}},
    "films": {"file_name": "films.json", "formatting": "sharegpt", "columns": {"messages": "m", "videos": "v"}},
    "odd": {"file_name": "odd.json", "formatting": "sharegpt", "tags": {"user_tag": "customer"}},
}  # fmt: skip
LEAST = "model_name_or_path: owner/model\ndataset: chats\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with their data described in `data`."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(INFO), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_lora_run(made: Any) -> None:
    recipe = made("""
        model_name_or_path: Qwen/Qwen3-4B-Instruct-2507
        trust_remote_code: true
        stage: sft
        do_train: true
        finetuning_type: lora
        lora_rank: 32
        lora_target: q_proj,v_proj
        dataset: chats
        template: qwen3_nothink
        cutoff_len: 4096
        mask_history: true
        val_size: 0.1
        eval_strategy: steps
        eval_steps: 50
        preprocessing_num_workers: 2
        output_dir: saves/x
        save_steps: 500
        overwrite_output_dir: true
        plot_loss: true
        per_device_train_batch_size: 1
        gradient_accumulation_steps: 8
        learning_rate: 1.0e-4
        num_train_epochs: 3.0
        lr_scheduler_type: cosine
        warmup_ratio: 0.1
        ddp_timeout: 180000000
        resume_from_checkpoint: null
    """)
    assert (recipe.model, recipe.output, recipe.dtype) == ("Qwen/Qwen3-4B-Instruct-2507", "saves/x", None)
    assert recipe.data.files == ("data/chats.json",)
    data = recipe.data
    assert (data.max_length, data.overlong, data.train_on, data.eval_share) == (4096, "truncate", "last", 0.1)
    assert (data.template, data.workers, data.packing, data.columns) == ("auto", 2, False, {})
    assert recipe.lora is not None
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.target_modules) == (32, 64, ("q_proj", "v_proj"))
    train = recipe.train
    assert (train["learning_rate"], train["warmup_steps"], train["lr_scheduler_type"]) == (1e-4, 0.1, "cosine")
    assert (train["per_device_train_batch_size"], train["gradient_accumulation_steps"]) == (1, 8)
    assert (train["eval_strategy"], train["eval_steps"], train["ddp_timeout"]) == ("steps", 50, 180000000)
    assert (train["save_strategy"], train["save_steps"]) == ("steps", 500)


def test_its_defaults_where_ours_differ(made: Any) -> None:
    """Values of its dataclasses and of transformers' TrainingArguments."""
    recipe = made(LEAST)
    assert recipe.lora is not None
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout) == (8, 16, 0.0)
    assert recipe.lora.target_modules == "all-linear"
    assert (recipe.data.max_length, recipe.data.overlong) == (2048, "truncate")
    expected = {
        "num_train_epochs": 3.0,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 1.0,
        "save_strategy": "steps",
        "seed": 42,
    }
    assert {key: recipe.train[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("finetuning_type: full", "lora", None),
        ("train_on_prompt: true", "data.train_on", "all"),
        ("neat_packing: true", "data.packing", True),
        ("neat_packing: true", "data.overlong", "drop"),
        ("quantization_bit: 4", "quantization", "nf4"),
        ("quantization_bit: 4\nquantization_type: fp4", "quantization", "fp4"),
        ("quantization_bit: 8", "quantization", "int8"),
        ("pure_bf16: true", "dtype", "bfloat16"),
        ("use_dft_loss: true", "train.loss_type", "dft"),
        ("use_eaft_loss: true\neaft_alpha: 1.0", "train.loss_type", "eaft"),
        ("use_muon: true", "train.optim", "muon"),
        ("disable_gradient_checkpointing: true", "train.gradient_checkpointing", False),
        ("pissa_init: true", "lora.init", "pissa"),
        ("pissa_init: true\npissa_iter: 4", "lora.init", "pissa"),
        ("additional_target: embed_tokens, lm_head", "lora.modules_to_save", ("embed_tokens", "lm_head")),
        ("enable_thinking: false", "data.template_arguments", {"enable_thinking": False}),
        ("default_system: Be brief.", "data.system", "Be brief."),
        ("eval_dataset: plain\nper_device_eval_batch_size: 2", "data.held_out", "data/plain.json"),
        ("early_stopping_steps: 3", "train.early_stopping_patience", 3),
        ("val_size: 0.1", "train.eval_strategy", "no"),
        ("save_strategy: no", "train.save_strategy", "no"),
        ("save_strategy: false", "train.save_strategy", "no"),
        ("learning_rate: 1e-4", "train.learning_rate", 1e-4),
        ("deepspeed: ds_z3.json", "train.deepspeed", "ds_z3.json"),
        ("loraplus_lr_ratio: 16", "train.learning_rates", {"lora_B": 16.0}),
        ("add_tokens: <a>,<b>\nresize_vocab: true", "train.add_tokens", ["<a>", "<b>"]),
        ("image_max_pixels: 262144", "train.image_max_pixels", 262144),
        ("freeze_multi_modal_projector: true\nfreeze_language_model: false", "train.freeze_vision", True),
        ("group_by_length: true", "train.train_sampling_strategy", "group_by_length"),
    ],
)
def test_one_key(made: Any, line: str, key: str, value: Any) -> None:
    recipe = made(LEAST + line)
    section, _, name = key.rpartition(".")
    holder = getattr(recipe, section) if section else recipe
    assert (holder[name] if section == "train" else getattr(holder, name)) == value


def test_data_sets_by_name(made: Any) -> None:
    openai = made("model_name_or_path: owner/model\ndataset: openai").data
    assert openai.files == ("data/openai.jsonl",)
    assert openai.columns == {"messages": "talk", "role": "who", "content": "said", "tools": "functions"}
    asked = made("model_name_or_path: owner/model\ndataset: qa").data
    assert (asked.files, asked.format) == (("someone/qa@en:train[:5%]",), "alpaca")
    assert asked.columns == {"instruction": "question", "output": "answer"}
    online = made("model_name_or_path: owner/model\ndataset: owner/rows\ndataset_dir: ONLINE").data
    assert online.files == ("owner/rows",)


def test_several_data_sets(made: Any) -> None:
    text = "model_name_or_path: owner/model\ndataset: plain, chats\nmax_samples: 1000"
    plain, chats = made(text).data.sources
    assert plain == {"files": "data/plain.json", "name": "plain", "cap": 1000, "format": "alpaca"}
    assert chats == {"files": "data/chats.json", "name": "chats", "cap": 1000}
    mixed = made(text + "\nmix_strategy: interleave_under\ninterleave_probs: 0.7,0.3").data.sources
    assert [source["weight"] for source in mixed] == [0.7, 0.3]


def test_pre_training_is_packing_of_texts(made: Any) -> None:
    data = made("model_name_or_path: owner/model\nstage: pt\ndataset: books\nfinetuning_type: full").data
    assert (data.format, data.text_field, data.train_on) == ("text", "body", "all")
    assert (data.packing, data.packing_strategy) == (True, "wrapped")


def test_images_freeze_the_vision_tower_as_it_does(made: Any) -> None:
    assert made("model_name_or_path: owner/model\ndataset: photos").train["freeze_vision"] is True
    text = "model_name_or_path: owner/model\ndataset: photos\nfreeze_vision_tower: false"
    assert made(text).train["freeze_vision"] is False
    whole = made("model_name_or_path: owner/model\ndataset: photos\nfinetuning_type: full").train
    assert "freeze_vision" not in whole
    assert re.search(whole["trainable"][0].removeprefix("!"), "model.visual.merger.norm.weight")
    assert whole["image_max_pixels"] == 768 * 768


def test_the_data_folder_is_found_beside_the_file(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert made(LEAST).data.files == (str(tmp_path / "data" / "chats.json"),)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("stage: dpo", "stage: dpo -- honed does supervised fine-tuning"),
        ("finetuning_type: freeze", "which layers are the last"),
        ("finetuning_type: oft", "write lora, full or freeze"),
        ("use_galore: true", "choose one with optim"),
        ("freeze_language_model: true", "needs the model's own names"),
        ("finetuning_type: full\nfreeze_vision_tower: false", "needs the model's own names"),
        ("template: default", "name a Jinja file with data.template"),
        ("dataset: nowhere", "'nowhere' is not in data/dataset_info.json"),
        ("dataset: pairs", "'pairs' holds preferences"),
        ("dataset: films", "train on texts and images"),
        ("dataset: odd", "the role 'customer'"),
        ("dataset: qa, openai", "data.columns is one for all datasets"),
        ("dataset_dir: nowhere", "nowhere/dataset_info.json, which was not found"),
        ("val_size: 100", "write a share"),
        ("mix_strategy: interleave_over", "write concat or interleave_under"),
        ("quantization_bit: 2", "write 4 or 8"),
        ("lora_rank: many", "gives no recipe that honed takes: lora.r is 'many'"),
        ("cutoff_length: 5", "did you mean 'cutoff_len'?"),
        ("adapter_name_or_path: saves/x", "set model=ADAPTER"),
        ("resume_from_checkpoint: saves/x", "name the model that it saved"),
        ("model_revision: old", "download that revision"),
        ("enable_thinking: null", "write true or false"),
    ],
)
def test_what_is_not_taken(honed: Any, theirs: Any, line: str, said: str) -> None:
    text = LEAST if not line.startswith("dataset:") else "model_name_or_path: owner/model\n"
    shown = honed("new", "recipe", theirs(text + line))
    assert (shown.status, shown.out) == (2, "")
    assert said in shown.err
    if "many" not in line:
        assert "theirs.yaml (LLaMA-Factory) has 1 key that cannot be translated" in shown.err
        assert "add --partly" in shown.err
