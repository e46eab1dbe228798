"""`honed new recipe` as its user sees it: what is shown, written and refused; and that its recipe trains the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from honed.recipe import load_recipe

AXOLOTL = """
base_model: owner/model
datasets: [{path: owner/rows, type: chat_template}]
sequence_len: 2048
learning_rate: 2e-4
flash_attention: true
weight_decay: 0.01
wandb_project:
"""


def test_it_is_shown_with_what_was_left_out(honed: Any, theirs: Any, tmp_path: Path) -> None:
    shown = honed("new", "recipe", theirs(AXOLOTL))
    assert shown.status == 0, shown.err
    first, *lines = shown.out.splitlines()
    assert (
        first == "# Made by `honed new recipe` of axolotl's theirs.yaml (known by base_model, datasets, sequence_len)."
    )
    assert "#   flash_attention: true -- honed has its own implementation" in lines
    assert "#   wandb_project -- empty" in lines
    assert "  num_train_epochs: 1.0 # axolotl's default" in lines
    assert shown.err.splitlines()[-1] == (
        "axolotl's theirs.yaml: 7 keys: 3 translated, 2 below train as they are, 2 needless here, 0 not taken"
    )
    file = tmp_path / "shown.yaml"
    file.write_text(shown.out, encoding="utf-8")
    assert load_recipe(file).data.max_length == 2048


def test_it_is_written_and_never_overwritten(honed: Any, theirs: Any, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    shown = honed("new", "recipe", theirs(AXOLOTL), out)
    assert (shown.status, shown.out) == (0, "")
    before = out.read_text(encoding="utf-8")
    again = honed("new", "recipe", theirs(AXOLOTL), out)
    assert again.status == 2
    assert "mine.yaml exists already" in again.err
    assert out.read_text(encoding="utf-8") == before
    nowhere = honed("new", "recipe", theirs(AXOLOTL), tmp_path / "none" / "mine.yaml")
    assert nowhere.status == 2
    assert "name another file" in nowhere.err


def test_partly_keeps_what_is_not_taken_as_comments(honed: Any, theirs: Any) -> None:
    text = AXOLOTL + "rl: dpo\nexpert_parallel_size: 4\n"
    refused = honed("new", "recipe", theirs(text))
    assert refused.status == 2
    assert "has 2 keys that cannot be translated" in refused.err
    assert "rl: dpo -- honed does supervised fine-tuning; fix: keep the other trainer for it" in refused.err
    shown = honed("new", "recipe", theirs(text), "--partly")
    assert shown.status == 0, shown.err
    assert "# NOT translated, so this recipe may train something else:\n#   rl: dpo -- honed does" in shown.out
    assert "2 not taken" in shown.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rate: 1e-4", "has no key by which LLaMA-Factory, axolotl or TRL would be known"),
        ("model_name_or_path: owner/model", "could be of several trainers (LLaMA-Factory: model_name_or_path; TRL"),
        ("[{a: 1}]", "holds no `key: value` lines"),
        ("a: [", "is not valid YAML"),
        ("base_model: a\nbase_model: b", "found the key 'base_model' twice"),
        ("base_model: owner/model\nadapter:", "names no data to train on"),
        ("dataset_name: owner/rows", "names no model"),
        (AXOLOTL + "val_set_size: [1]", "a value of datasets, sequence_len, val_set_size is not what axolotl takes"),
        (AXOLOTL + "num_epochs: two\nsaves_per_epoch: 2", "is not what axolotl takes"),
        (AXOLOTL + "streaming: true", "data.streaming has no end"),
        (AXOLOTL + "optimizer: muun", "optim is 'muun'"),
    ],
)
def test_what_cannot_be_made(honed: Any, theirs: Any, text: str, said: str) -> None:
    shown = honed("new", "recipe", theirs(text))
    assert (shown.status, shown.out) == (2, "")
    assert said in shown.err
    assert "fix:" in shown.err


def test_whose_it_is_can_be_said(honed: Any, theirs: Any) -> None:
    text = "model_name_or_path: owner/model\ndataset_name: owner/rows\nlora_rank: 4"
    assert "could be of" not in honed("new", "recipe", theirs(text), "--kind", "trl", "--partly").err
    assert "honed has nothing for it" in honed("new", "recipe", theirs(text), "--kind", "trl").err


def test_a_foreign_file_given_to_train_is_told(honed: Any, theirs: Any) -> None:
    path = theirs(AXOLOTL)
    shown = honed("train", path)
    assert shown.status == 2
    assert "Unknown key base_model" in shown.err
    assert shown.err.rstrip().endswith(f"honed new recipe {path} mine.yaml")
    ours = theirs("model: owner/model\nmax_length: 5")
    assert "new recipe" not in honed("train", ours).err


def test_training_by_it_is_training_by_hand(
    honed: Any, theirs: Any, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of a tiny model: every number that LLaMA-Factory's file names or leaves to its defaults counts."""
    rows = [{"instruction": f"Count to {n}.", "input": "Briefly.", "output": "one two " * n} for n in range(1, 13)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "counting.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "data" / "dataset_info.json").write_text('{"counting": {"file_name": "counting.json"}}')
    monkeypatch.chdir(tmp_path)
    foreign = theirs(
        f"model_name_or_path: {model_folder}\nstage: sft\ndataset: counting\ntemplate: qwen\ncutoff_len: 40\n"
        f"lora_rank: 4\nmax_steps: 2\nper_device_train_batch_size: 3\noutput_dir: runs/translated\n"
        "logging_steps: 1\nuse_cpu: true\n"
    )
    shown = honed("new", "recipe", foreign, "mine.yaml")
    assert shown.status == 0, shown.err
    by_hand = tmp_path / "by_hand.yaml"
    by_hand.write_text(
        f"model: {model_folder}\ndata: {{files: data/counting.json, max_length: 40, overlong: truncate}}\n"
        "lora: {r: 4, alpha: 8}\ntrain: {max_steps: 2, per_device_train_batch_size: 3, learning_rate: 5.0e-5, "
        "lr_scheduler_type: linear, warmup_steps: 0, num_train_epochs: 3, seed: 42, use_cpu: true}\n"
        "output: runs/by_hand\n",
        encoding="utf-8",
    )
    logged = {}
    for file, folder in (("mine.yaml", "translated"), ("by_hand.yaml", "by_hand")):
        trained = honed("train", file)
        assert trained.status == 0, trained.err
        lines = (tmp_path / "runs" / folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        numbers = [json.loads(line) for line in lines]
        logged[folder] = [(n["loss"], n["grad_norm"], n["learning_rate"]) for n in numbers if "loss" in n]
    assert len(logged["by_hand"]) == 2
    assert logged["translated"] == logged["by_hand"]
