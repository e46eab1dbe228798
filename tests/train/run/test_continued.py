"""A recipe whose model is an adapter: it is trained further, as a peft model given to `SFTTrainer` is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from vision_models import make_vlm, picture

from honed import SFTTrainer
from honed.errors import ModelError, RecipeError
from honed.recipe import Recipe, load_recipe
from honed.train.run.dry_run import dry_run
from honed.train.run.run import run, training_arguments

STEPS = ["max_steps=2", "learning_rate=0.01", "warmup_steps=0", "lr_scheduler_type=constant"]


@pytest.fixture
def recipe_of(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: list[dict[str, Any]]
) -> Callable[..., Recipe]:
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows))
    given = {"model": tmp_path / "tiny", "data": tmp_path / "rows.jsonl", "output": tmp_path / "run"}
    fixed = [f"{key}={value}" for key, value in given.items()]

    def make(*changes: str) -> Recipe:
        return load_recipe(None, [*fixed, "use_cpu=true", "dtype=float32", "max_length=64", *STEPS, *changes])

    return make


@pytest.fixture
def adapter(recipe_of: Callable[..., Recipe]) -> Path:
    """A run whose adapter has other options than a recipe's defaults."""
    changes = ("lora.r=4", "lora.alpha=4", "lora.target_modules=[q_proj, down_proj]")
    return run(recipe_of(*changes), command="", say=lambda _: None).folder


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("engine", ["trainer", "plain"])
def test_it_trains_what_python_trains(
    engine: str, adapter: Path, tmp_path: Path, recipe_of: Callable[..., Recipe]
) -> None:
    said: list[str] = []
    further = recipe_of(f"model={adapter}", f"output={tmp_path / 'further'}", f"engine={engine}")
    folder = run(further, command="", say=said.append).folder
    assert f"note: {adapter} holds an adapter of {tmp_path / 'tiny'}; it is trained further" in said

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32)
    before = load_file(adapter / "adapter_model.safetensors")
    trainer = SFTTrainer(
        PeftModel.from_pretrained(base, adapter, is_trainable=True),
        args=training_arguments(dataclasses.replace(further, output=str(tmp_path / "python"))),
        train_dataset=str(tmp_path / "rows.jsonl"),
        processing_class=AutoTokenizer.from_pretrained(adapter),
    )
    trainer.train()
    trainer.save_model()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses(folder) == pytest.approx(logged, rel=1e-6)
    ours, theirs = (
        load_file(place / "adapter_model.safetensors") for place in (folder, Path(trainer.args.output_dir or ""))
    )
    assert ours.keys() == theirs.keys() == before.keys()
    moved = max(float((ours[name] - before[name]).abs().max()) for name in ours)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert apart < 1e-3 * moved

    config = PeftConfig.from_pretrained(folder)
    assert (config.r, config.base_model_name_or_path) == (4, str(tmp_path / "tiny"))


def test_a_dry_run_counts_its_weights(adapter: Path, tmp_path: Path, recipe_of: Callable[..., Recipe]) -> None:
    found = dry_run(recipe_of(f"model={adapter}", f"output={tmp_path / 'further'}"))
    assert found.trainable == sum(
        weight.numel() for weight in load_file(adapter / "adapter_model.safetensors").values()
    )
    assert found.lora is not None
    assert (found.lora.r, found.lora.target_modules) == (4, ("down_proj", "q_proj"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("lora=null", "lora is null"),
        ("lora.r=8", "lora.r is 8, but the adapter in .* has 4"),
        ("lora.target_modules=[v_proj]", "the adapter in .* has .'down_proj', 'q_proj'"),
        ("lora.use_dora=true", "lora.use_dora is True"),
    ],
)
def test_other_options_are_refused(
    change: str,
    says: str,
    adapter: Path,
    tmp_path: Path,
    recipe_of: Callable[..., Recipe],
) -> None:
    recipe = recipe_of(f"model={adapter}", f"output={tmp_path / 'further'}", change)
    with pytest.raises(RecipeError, match=says) as refused:
        run(recipe, command="", say=print)
    assert "honed export" in refused.value.fix
    with pytest.raises(RecipeError, match=says):
        dry_run(recipe)
    assert not (tmp_path / "further").exists()


def test_options_that_the_adapter_has_may_be_repeated(
    adapter: Path, tmp_path: Path, recipe_of: Callable[..., Recipe]
) -> None:
    same = ("lora.r=4", "lora.alpha=4", "lora.target_modules=[q_proj, down_proj]")
    assert dry_run(recipe_of(f"model={adapter}", f"output={tmp_path / 'further'}", *same)).lora is not None


def test_the_base_stays_in_4_bits(adapter: Path, recipe_of: Callable[..., Recipe]) -> None:
    recipe = adapter / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("quantization: null", "quantization: nf4"))
    with pytest.raises(RecipeError, match="trained on a base in nf4"):
        dry_run(recipe_of(f"model={adapter}", "output=elsewhere"))


def test_a_base_that_is_gone_and_other_methods_are_told(
    adapter: Path, tmp_path: Path, recipe_of: Callable[..., Recipe]
) -> None:
    shutil.rmtree(tmp_path / "tiny")
    with pytest.raises(ModelError, match=r"adapter_config\.json names the base.*No such model folder"):
        run(recipe_of(f"model={adapter}", f"output={tmp_path / 'further'}"), command="", say=print)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "base_model_name_or_path": "x"}))
    with pytest.raises(RecipeError, match="the method IA3"):
        dry_run(recipe_of(f"model={adapter}", "output=elsewhere"))


def test_images_are_read_as_by_the_base(tmp_path: Path) -> None:
    model, processor = make_vlm("llava")
    model.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    picture().save(tmp_path / "red.png")
    messages = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "red fox"}]
    row = {"messages": messages, "images": [str(tmp_path / "red.png")]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")

    def recipe_of(model: Path, name: str) -> Recipe:
        fixed = [f"model={model}", f"data={tmp_path / 'rows.jsonl'}", f"output={tmp_path / name}", "dtype=float32"]
        return load_recipe(None, [*fixed, "use_cpu=true", "gradient_checkpointing=false", *STEPS])

    first = run(recipe_of(tmp_path / "vlm", "first"), command="", say=lambda _: None).folder
    said: list[str] = []
    second = run(recipe_of(first, "second"), command="", say=said.append).folder
    assert "1 of 1 row shows images" in said[-1]
    assert losses(second)[0] < losses(first)[-1]
