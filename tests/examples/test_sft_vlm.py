"""The example of a vision-language model, on a tiny one."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

pytest.importorskip("PIL")

from vision_models import make_vlm, picture

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples/sft_vlm.py"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
def test_an_adapter_is_trained_and_saved_with_its_processor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = make_vlm("gemma3")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    picture().save(tmp_path / "cat.png")
    turns = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "A cat."}]
    row = json.dumps({"messages": turns, "images": ["cat.png"]})
    (tmp_path / "rows.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    out = tmp_path / "out"
    runpy.run_path(str(EXAMPLE))["main"](str(tmp_path / "model"), str(tmp_path / "rows.jsonl"), str(out))
    assert "2 rows in, 2 trained, 0 dropped" in capsys.readouterr().out
    assert {"adapter_model.safetensors", "tokenizer.json"} <= {file.name for file in out.iterdir()}
