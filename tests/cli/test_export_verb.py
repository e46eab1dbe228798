"""`honed export`: from a run to a whole model, with its numbers on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def model(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    tiny_model(hidden_size=64, head_dim=16).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_run_is_exported(honed: Any, model: Path, tmp_path: Path, chat_rows: list[Any]) -> None:
    import json

    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, chat_rows)), encoding="utf-8")
    trained = honed(
        *("train", "--model", model, "--data", data, "--output", tmp_path / "run"),
        *("max_steps=2", "use_cpu=true", "report_to=none", "lora.use_dora=true", "lora.modules_to_save=[lm_head]"),
    )
    assert trained.status == 0, trained.err
    shown = honed("export", tmp_path / "run", tmp_path / "out", "--dtype", "bfloat16", "--ollama")
    assert shown.status == 0, shown.err
    assert "the trained model as bfloat16" in shown.out and "6 greedy answers" in shown.out
    assert 'PARAMETER stop "<|im_end|>"' in (tmp_path / "out" / "Modelfile").read_text()
    again = honed("export", tmp_path / "run", tmp_path / "out")
    assert again.status == 2 and "not empty" in again.err
    data.unlink()
    other = honed("export", tmp_path / "run", tmp_path / "other")
    assert other.status == 0, other.err
    assert "starter set" in other.out
    said = honed("generate", tmp_path / "out", "why 3", "--max-new-tokens", "4")
    assert said.status == 0, said.err


def test_no_run(honed: Any, tmp_path: Path) -> None:
    shown = honed("export", tmp_path / "nope", tmp_path / "out")
    assert shown.status == 2 and "holds no model" in shown.err


def test_quantised_and_all_weights(honed: Any, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'honed[quant]'")
    arguments = ("train", "--model", model, "--output", tmp_path / "run", "quantization=nf4")
    shown = honed(*arguments, "lora=null")
    assert shown.status == 2 and "own weights cannot be trained" in shown.err
    shown = honed(*arguments, "max_steps=1", "use_cpu=true", "report_to=none", "data.max_length=400")
    assert shown.status == 0, shown.err
    shown = honed("generate", tmp_path / "run", "why", "--max-new-tokens", "2")
    assert shown.status == 0, shown.err
    assert honed("train", "quantization=int3", "--output", tmp_path / "x").status == 2


def test_4_bits_need_a_package_and_exclude_ollama(
    honed: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from honed.model.export import gptq

    monkeypatch.setattr(gptq, "find_spec", lambda name: None)
    shown = honed("export", model, tmp_path / "out", "--gptq")
    assert shown.status == 2 and "pip install llmcompressor" in shown.err
    monkeypatch.setattr(gptq, "find_spec", lambda name: name)
    assert "Ollama does not read" in honed("export", model, tmp_path / "out", "--gptq", "--ollama").err
    assert "give at least 1" in honed("export", model, tmp_path / "out", "--gptq", "--calibration-rows", "0").err
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_with_its_modelfile(honed: Any, model: Path, tmp_path: Path) -> None:
    shown = honed("export", model, tmp_path / "out", "--gguf", "q8_0", "--ollama")
    assert shown.status == 0, shown.err
    assert "then as model-q8_0.gguf" in shown.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Modelfile", "model-q8_0.gguf"]
    written = (tmp_path / "out" / "Modelfile").read_text()
    assert written.startswith("FROM model-q8_0.gguf\n") and 'PARAMETER stop "<|im_end|>"' in written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gguf", "q2"), "known are f32, f16, q8_0"),
        (("--gguf", "--dtype", "bfloat16"), "--gguf and --dtype both"),
    ],
)
def test_gguf_files_that_cannot_be(options: tuple[str, ...], message: str, honed: Any, model: Path) -> None:
    shown = honed("export", model, model.parent / "out", *options)
    assert shown.status == 2 and message in shown.err and not (model.parent / "out").exists()


@pytest.mark.filterwarnings("ignore")  # those of llm-compressor and of what it brings
def test_a_run_in_4_bits(honed: Any, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("llmcompressor", reason="pip install llmcompressor")
    shown = honed("export", model, tmp_path / "out", "--gptq", "--calibration-rows", "8")
    assert shown.status == 0, shown.err
    assert "in 4 bits, 64 weights to a scale, calibrated on 8 rows" in shown.out and "of other rows" in shown.out
    said = honed("generate", tmp_path / "out", "why 3", "--max-new-tokens", "4")
    assert said.status == 0, said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "out"]
