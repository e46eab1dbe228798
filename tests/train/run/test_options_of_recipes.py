"""Options that public recipes use, in whole runs of both engines: both train the same, and what is saved has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from honed.model.adapters.load_trained import load_for_generation
from honed.model.export.export import merge
from honed.recipe import recipe_from
from honed.train.run.run import run

NEW = ["<think>", "</think>"]
IDS_BL = torch.tensor([[5, 322, 9, 323, 7]])
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")


@pytest.fixture
def train(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., Path]:
    """Trains a tiny model on rows with thoughts; gives the run's folder."""
    tiny_model(vocab_size=322).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    rows = [f'{{"prompt": "why {n}", "completion": "<think>one {n}</think>yes"}}' for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")

    def run_it(engine: str, **more: Any) -> Path:
        train = {"use_cpu": True, "per_device_train_batch_size": 2, "report_to": "none", **more.pop("train", {})}
        tree = {"model": str(tmp_path / "tiny"), "engine": engine, "output": str(tmp_path / engine), "train": train}
        recipe = recipe_from({"data": {"files": str(tmp_path / "rows.jsonl"), "cache": False}, **tree, **more})
        said: list[str] = []
        folder = run(recipe, command="test", say=said.append).folder
        (folder / "said.txt").write_text("\n".join(said), encoding="utf-8")
        return folder

    return run_it


def assert_same_weights(a: Any, b: Any) -> None:
    others = dict(b.named_parameters())
    for name, weight in a.named_parameters():
        torch.testing.assert_close(
            weight, others[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_added_tokens_are_trained_with_an_adapter_and_saved(train: Callable[..., Path]) -> None:
    options = {
        "train": {"add_tokens": NEW, "pad_token": "<|im_start|>"},
        "lora": {"r": 2, "target_modules": ["q_proj"]},
    }
    folders = [train(engine, **options) for engine in ("trainer", "plain")]
    models = []
    for folder in folders:
        model, tokenizer = load_for_generation(str(folder), device=torch.device("cpu"), dtype=torch.float32)
        assert tokenizer("<think>", add_special_tokens=False)["input_ids"] == [322]
        assert tokenizer.pad_token == "<|im_start|>"
        rows = model.get_input_embeddings()(torch.tensor([322, 323]))
        assert not torch.allclose(rows[0], rows[1], atol=1e-4)  # both began as the mean
        torch.testing.assert_close(merge(folder)(IDS_BL).logits, model(IDS_BL).logits)
        assert "add_tokens" in (folder / "said.txt").read_text(encoding="utf-8")
        models.append(model)
    assert_same_weights(*models)


def test_weights_by_name_at_rates_of_their_own(train: Callable[..., Path], tmp_path: Path) -> None:
    """What is frozen stays to the bit; ten times the learning rate moves weights about ten times as far."""
    chosen = {
        "trainable": [r"layers\.1\.mlp"],
        "learning_rates": {"down_proj": 10.0},
        "max_steps": 1,
        "warmup_steps": 0,
    }
    folders = [train(engine, lora=None, train={**chosen, "max_grad_norm": 0.0}) for engine in ("trainer", "plain")]
    cpu = torch.device("cpu")
    before = dict(load_for_generation(str(tmp_path / "tiny"), device=cpu, dtype=torch.float32)[0].named_parameters())
    models = [load_for_generation(str(folder), device=cpu, dtype=torch.float32)[0] for folder in folders]
    assert_same_weights(*models)
    for name, weight in models[0].named_parameters():
        if "layers.1.mlp" not in name:
            assert torch.equal(weight, before[name]), name
    moved = {name: float((models[0].get_parameter(name) - old).detach().abs().median()) for name, old in before.items()}
    down, up = moved["model.layers.1.mlp.down_proj.weight"], moved["model.layers.1.mlp.up_proj.weight"]
    assert down / up == pytest.approx(10.0, rel=0.05)  # Adam's first step is the learning rate, whatever the gradient
    said = (folders[1] / "said.txt").read_text(encoding="utf-8")
    assert "trainable: " in said
    assert "'down_proj' learns 10 times as fast" in said
