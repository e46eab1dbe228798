"""Exported models are the trained ones: read back from disk and held against the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from honed.errors import ModelError, RunError
from honed.model.adapters.adapters import attach, lora_config
from honed.model.export import export as export_module
from honed.model.export.export import Probe, export
from honed.model.load.load import load_model
from honed.recipe import as_yaml, recipe_from

CPU = torch.device("cpu")
PROBES = [Probe(ids=range(3, 40), n_prompt=9), Probe(ids=range(50, 70), n_prompt=4)]


@pytest.fixture
def base(tmp_path: Path, tiny_model: Callable[..., Any]) -> str:
    tiny_model(hidden_size=64, head_dim=16).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def run_folder(base: str, tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Path]:
    """A run's folder with an adapter that does something, and stops of its own."""

    def make(config: Any, **options: Any) -> Path:
        model = attach(load_model(base, device=CPU, dtype=torch.float32, **options), config)
        for p in model.parameters():
            if p.requires_grad:
                p.data += 0.05 * torch.randn_like(p)
        folder = tmp_path / "run"
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        model.generation_config.eos_token_id = [7, 2]
        model.generation_config.save_pretrained(folder)
        (folder / "run.json").write_text('{"status": "finished"}', encoding="utf-8")
        return folder

    return make


def trained_logits(folder: Path, base: str) -> torch.Tensor:
    """peft by itself, no code of ours."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, folder).eval()(torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_plain_transformers_loads_the_trained_model(
    dtype: str, run_folder: Callable[..., Path], base: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    folder, out = run_folder(lora_config(r=4)), tmp_path / "out"
    found = export(folder, out, dtype=dtype, probes=PROBES)
    assert found.passes and found.tokens == 57 and found.answers == 2
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    assert model.dtype is getattr(torch, dtype)
    assert model.generation_config.eos_token_id == [7, 2]
    with torch.no_grad():
        logits = model.float()(torch.arange(3, 40)[None]).logits
    expected = trained_logits(folder, base)
    change = float((logits - expected).pow(2).mean().sqrt() / expected.std())
    assert change < {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}[dtype]
    assert (change > 1e-4) == (dtype != "float32")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == tiny_tokenizer.chat_template
    if dtype == "float32":
        assert (found.same_choices, found.same_answers) == (57, 2)


@pytest.mark.parametrize(
    "config",
    [
        lora_config(use_dora=True),
        lora_config(init="pissa"),
        lora_config(modules_to_save=["lm_head", "embed_tokens"]),
        peft.IA3Config(task_type="CAUSAL_LM"),
    ],
    ids=["dora", "pissa", "whole layers", "ia3"],
)
def test_other_methods(config: Any, run_folder: Callable[..., Path], tmp_path: Path) -> None:
    found = export(run_folder(config), tmp_path / "out", probes=PROBES)
    assert found.change < 1e-4 and found.same_answers == 2


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: honed[quant]")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_a_quantised_base_is_dequantised_first(
    kind: str, run_folder: Callable[..., Path], base: str, tmp_path: Path
) -> None:
    """So the result is what was trained, and not what merging into the original base would give."""
    folder = run_folder(lora_config(r=4), quantization=kind)
    recipe = recipe_from({"model": base, "quantization": kind})
    (folder / "recipe.yaml").write_text(as_yaml(recipe), encoding="utf-8")
    found = export(folder, tmp_path / "out", dtype="bfloat16", probes=PROBES)
    assert found.passes
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert not hasattr(model.config, "quantization_config")
    with torch.no_grad():
        logits = model.eval()(torch.arange(3, 40)[None]).logits
    original = trained_logits(folder, base)
    if kind == "nf4":
        assert float((logits - original).pow(2).mean().sqrt() / original.std()) > 2 * found.change


def test_a_whole_model_is_cast(base: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    tiny_tokenizer.save_pretrained(base)
    assert export(base, tmp_path / "out", dtype="float16", probes=PROBES).passes


def test_virtual_tokens_cannot_be_merged(run_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = run_folder(peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="cannot be merged"):
        export(folder, tmp_path / "out", probes=PROBES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "run"]


@pytest.mark.filterwarnings("ignore:.*lora_(bias|B):UserWarning")
def test_a_bias_that_the_base_has_no_place_for(run_folder: Callable[..., Path], tmp_path: Path) -> None:
    config = peft.LoraConfig(lora_bias=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ModelError, match="LORA adapter cannot be merged: Impossible to merge LoRA with `lora_bias"):
        export(run_folder(config), tmp_path / "out", probes=PROBES)


def test_weights_that_are_not_finite(run_folder: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = run_folder(lora_config(r=4))
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="cannot be merged"):
        export(folder, tmp_path / "out", probes=PROBES)


def test_a_result_that_is_another_model_is_not_kept(
    run_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the adapter is left out."""
    folder = run_folder(lora_config(r=4))
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    monkeypatch.setattr(export_module, "merge", lambda _: load_model(base, device=CPU))
    with pytest.raises(ModelError, match="is not the trained one"):
        export(folder, tmp_path / "out", probes=PROBES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "run"]


def test_places(run_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = run_folder(lora_config(r=4))
    with pytest.raises(RunError, match="not empty"):
        export(folder, tmp_path / "base", probes=PROBES)
    with pytest.raises(RunError, match="not empty"):
        export(folder, folder, probes=PROBES)
    with pytest.raises(ModelError, match="holds no model"):
        export(tmp_path / "nope", tmp_path / "out", probes=PROBES)
    with pytest.raises(ModelError, match="known are"):
        export(folder, tmp_path / "out", dtype="int4", probes=PROBES)
    (folder / "run.json").write_text('{"status": "interrupted"}', encoding="utf-8")
    with pytest.raises(RunError, match="not finished"):
        export(folder, tmp_path / "out", probes=PROBES)
