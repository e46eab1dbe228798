"""DeepSpeed's configuration is checked before anything is loaded; these tests need no DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils.deepspeed import HfDeepSpeedConfig

from honed.errors import RecipeError
from honed.train.options import deepspeed
from honed.train.options.config import SFTConfig
from honed.train.run.ranks import check_ranks


def arguments(zero: dict[str, Any], **more: Any) -> Any:
    """What the checks read of arguments with this `zero_optimization`."""
    plugin = SimpleNamespace(hf_ds_config=HfDeepSpeedConfig({"zero_optimization": zero}))
    return SimpleNamespace(deepspeed_plugin=plugin, deepspeed={"zero_optimization": zero}, fsdp="", **more)


def test_without_deepspeed_nothing_is_checked(tmp_path: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True)
    assert deepspeed.zero_stage(args) is None
    for check in (deepspeed.check_deepspeed, deepspeed.need_launcher, deepspeed.need_whole_model):
        check(args)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_stage(stage: int) -> None:
    assert deepspeed.zero_stage(arguments({"stage": stage})) == stage


def test_an_absent_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed, "find_spec", lambda package: None)
    with pytest.raises(RecipeError, match="pip install deepspeed"):
        SFTConfig(output_dir=str(tmp_path), use_cpu=True, deepspeed="zero2.json")


@pytest.mark.parametrize(("content", "says"), [(None, "no such file"), ('{"a": 1', "cannot be read as JSON")])
def test_a_file_that_cannot_be_used(
    content: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepspeed, "find_spec", lambda package: package)
    if content is not None:
        (tmp_path / "ds.json").write_text(content)
    with pytest.raises(RecipeError, match=says) as refusal:
        SFTConfig(output_dir=str(tmp_path), use_cpu=True, deepspeed=str(tmp_path / "ds.json"))
    assert "ds.json" in str(refusal.value)


def test_values_that_contradict_the_arguments() -> None:
    """As transformers collects them; it would complain when the model is loaded and the data are prepared."""
    told = ["- ds gradient_clipping=0.5 vs hf max_grad_norm=1.0"]
    with pytest.raises(RecipeError, match=r"gradient_clipping=0\.5 there, max_grad_norm=1\.0 here"):
        deepspeed.check_deepspeed(SimpleNamespace(hf_deepspeed_config=SimpleNamespace(mismatches=told)))  # type: ignore[arg-type]


def test_a_launcher_is_needed_for_one_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RecipeError, match="torchrun --nproc_per_node"):
        deepspeed.need_launcher(arguments({"stage": 2}))
    monkeypatch.setenv("RANK", "0")
    deepspeed.need_launcher(arguments({"stage": 2}))


def test_a_recipe_saves_a_whole_model() -> None:
    gathers = {"stage3_gather_16bit_weights_on_model_save": True}
    with pytest.raises(RecipeError, match="in shards that only DeepSpeed can read"):
        check_ranks(arguments({"stage": 3}, world_size=1), engine="trainer", asks=False)
    for zero in ({"stage": 2}, {"stage": 3, **gathers}):
        check_ranks(arguments(zero, world_size=2), engine="trainer", asks=False)


def test_questions_are_answered_where_weights_are_whole() -> None:
    check_ranks(arguments({"stage": 2}, world_size=2), engine="trainer", asks=True)
    with pytest.raises(RecipeError, match="sharded over all"):
        whole = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
        check_ranks(arguments(whole, world_size=2), engine="trainer", asks=True)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_configurations_that_honed_ships(stage: int) -> None:
    """Whatever the arguments say stands in them as "auto"."""
    import honed.recipes

    file = Path(honed.recipes.__file__).parent / "deepspeed" / f"zero{stage}.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    deepspeed.need_whole_model(arguments(config["zero_optimization"]))
    assert deepspeed.zero_stage(arguments(config["zero_optimization"])) == stage
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert {config[name] for name in names} == {"auto"}
    assert {config[kind]["enabled"] for kind in ("bf16", "fp16")} == {"auto"}
