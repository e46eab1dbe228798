"""The YAML of LLaMA-Factory's v1, and the layers that `freeze` trains, in both versions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from honed.cli.new.llamafactory_v1 import LLAMAFACTORY_V1
from honed.cli.new.translate import translate

SETS = {
    "identity": {"path": "data/identity.json", "source": "local", "converter": "alpaca"},
    "chats": {"path": "someone/chats", "converter": "sharegpt", "split": "train[:5%]", "size": 500},
    "own": {"path": "data/own.jsonl", "source": "local"},
    "pairs": {"path": "data/pairs.jsonl", "source": "local", "converter": "pair"},
}
LEAST = "model: owner/model\ntrain_dataset: data/sets.yaml\nmodel_class: llm\n"


@pytest.fixture(autouse=True)
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Describes datasets in the current folder; at first one."""

    def write(*names: str) -> None:
        described = {name: SETS[name] for name in names}
        (tmp_path / "data" / "sets.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")

    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    write("identity")
    return write


def test_a_lora_run(made: Any, sets: Callable[..., None]) -> None:
    sets("identity", "chats")
    recipe = made("""
        model: Qwen/Qwen3-4B
        model_class: llm
        peft_config:
          name: lora
          r: 16
          target_modules: all
        quant_config: {name: bnb, quantization_bit: 4}
        kernel_config: {name: auto}
        dist_config: {name: fsdp2, dcp_path: null}
        train_dataset: data/sets.yaml
        output_dir: ./outputs/x
        micro_batch_size: 2
        global_batch_size: 16
        cutoff_len: 4096
        learning_rate: 1.0e-4
        max_steps: 10
        sample_backend: hf
        max_new_tokens: 128
    """)
    assert (recipe.model, recipe.output, recipe.quantization) == ("Qwen/Qwen3-4B", "./outputs/x", "nf4")
    assert recipe.data.sources == (
        {"files": "data/identity.json", "name": "identity", "format": "alpaca"},
        {"files": "someone/chats:train[:5%]", "name": "chats", "cap": 500, "format": "sharegpt"},
    )
    assert (recipe.data.max_length, recipe.data.overlong) == (4096, "truncate")
    lora = recipe.lora
    assert lora is not None
    assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (16, 16, 0.05, "all-linear")
    wanted = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "max_steps": 10,
              "learning_rate": 1e-4, "lr_scheduler_type": "constant", "weight_decay": 0.01,
              "save_strategy": "no", "gradient_checkpointing": True}  # fmt: skip
    assert {key: recipe.train[key] for key in wanted} == wanted


def test_all_weights_with_muon_on_several_ranks(made: Any) -> None:
    recipe = made(f"{LEAST}cp_size: 2\nsave_steps: 50\noptim_config: {{name: muon, wd: 0.2, momentum: 0.9}}\n")
    assert recipe.lora is None and recipe.data.files == ("data/identity.json",)
    wanted = {"optim": "muon", "weight_decay": 0.2, "optim_args": "momentum=0.9", "adam_beta2": 0.95,
              "sequence_parallel_size": 2, "save_strategy": "steps", "save_steps": 50}  # fmt: skip
    assert {key: recipe.train[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("more", "refusal"),
    [
        ("batching_strategy: dynamic_batching", "write one of normal, padding_free"),
        ("model_class: cls", "honed trains language models"),
        ("peft_config: {name: lora, adapter_name_or_path: x}", "set model=ADAPTER"),
        ("peft_config: {name: oft}", "honed has no 'oft'"),
        ("optim_config: {name: lion}", "its v1 has muon alone"),
        ("cp_size: 2\ncp_mode: ring", "honed shares rows as Ulysses does"),
        ("quant_config: {name: bnb, quantization_bit: 3}", "4 or 8"),
        ("peft_config: {name: freeze}", "which layers are the last"),
        ("save_epochs: 0.5", "after steps or epochs"),
        ("train_dataset: data/none.yaml", "data/none.yaml was not found"),
    ],
)
def test_what_has_no_place_here_is_refused(more: str, refusal: str, honed: Any, theirs: Any) -> None:
    text = "\n".join(line for line in LEAST.splitlines() if not more.startswith(line.split()[0])) + f"\n{more}\n"
    shown = honed("new", "recipe", theirs(text))
    assert shown.status == 2 and refusal in shown.err


@pytest.mark.parametrize(("name", "refusal"), [("own", "blocks of `type` and `value`"), ("pairs", "converter 'pair'")])
def test_rows_that_are_not_read_are_refused(
    name: str, refusal: str, honed: Any, theirs: Any, sets: Callable[..., None]
) -> None:
    sets("identity", name)
    shown = honed("new", "recipe", theirs(LEAST))
    assert shown.status == 2 and refusal in shown.err


@pytest.mark.parametrize("version", ["stable", "v1"])
@pytest.mark.parametrize(
    ("asked", "trained"),
    [
        ({"freeze_trainable_layers": 1}, r"model\.layers\.1\..*"),
        (
            {"freeze_trainable_layers": -1, "freeze_extra_modules": "embed_tokens"},
            r"model\.(layers\.0|embed_tokens)\..*",
        ),
        ({"freeze_trainable_modules": "mlp"}, r"model\.layers\.[01]\.mlp\..*"),
    ],
)
def test_frozen_layers(asked: dict[str, Any], trained: str, version: str, made: Any, model_folder: Path) -> None:
    """The names that are trained, of a model with two layers."""
    from honed.model.adapters.trainable import train_only
    from honed.train.run.dry_run import meta_model

    tree = {"model": str(model_folder), "train_dataset": "data/sets.yaml", "peft_config": {"name": "freeze", **asked}}
    if version == "stable":
        tree = {"model_name_or_path": str(model_folder), "dataset": "rows", "finetuning_type": "freeze", **asked}
        tree |= {"dataset_dir": "ONLINE"}
    recipe = made(yaml.safe_dump(tree))
    model = meta_model(str(model_folder))
    train_only(model, recipe.train["trainable"])
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert recipe.lora is None and found
    assert found == {name for name, _ in model.named_parameters() if re.fullmatch(trained, name)}


def test_a_data_set_may_be_named_itself() -> None:
    tree = {"model": "owner/model", "train_dataset": "someone/chats"}
    draft = translate(tree, LLAMAFACTORY_V1, Path("theirs.yaml"))
    assert draft.lines["data.files"].value == "someone/chats"
    assert "train_dataset" in draft.refused  # its rows are in v1's own form
