"""The examples of adapters and quantised bases, in their small form, on a tiny model."""

from __future__ import annotations

import copy
import json
import runpy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from honed.model.adapters.load_trained import load_for_generation

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> str:
    """A base model without a chat template."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    tiny_model(initializer_range=0.1, hidden_size=64, head_dim=16).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: honed[quant]")
def test_qlora_medical(folder: str, tmp_path: Path) -> None:
    """Both formats of rows; the answer that was trained comes back, and stops."""
    rows = [{"instruction": "why", "input": "", "output": "yes"}] * 2
    rows += [{"conversations": [{"from": "human", "value": "why"}, {"from": "gpt", "value": "yes"}]}] * 2
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    example = runpy.run_path(str(EXAMPLES / "qlora_medical.py"))
    few = ["--max-steps", "60", "--max-length", "64", "--learning-rate", "0.03", "--max-new-tokens", "8"]
    places = ["--model", folder, "--data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
    result = example["main"]([*few, *places, "--question", "why", "--logging-steps", "10"])
    assert result["losses"][-1] < 0.5 * result["losses"][0]
    assert (result["answer"], result["stopped"]) == ("yes", True)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 16, 0.05)
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_clone_chat_template(folder: str, tmp_path: Path, tiny_tokenizer: Any, chat_rows: list[Any]) -> None:
    source = copy.deepcopy(tiny_tokenizer)
    source.add_special_tokens({"additional_special_tokens": ["<turn>", "</turn>"]})
    source.eos_token = "</turn>"
    source.chat_template = source.chat_template.replace("<|im_start|>", "<turn>").replace("<|im_end|>", "</turn>")
    source.save_pretrained(tmp_path / "source")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, chat_rows)), encoding="utf-8")
    example = runpy.run_path(str(EXAMPLES / "clone_chat_template.py"))
    places = ["--model", folder, "--data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
    trainer = example["main"]([*places, "--source", str(tmp_path / "source"), "--max-steps", "2", "--max-rows", "8"])
    loaded, _ = load_for_generation(str(tmp_path / "out"), device=torch.device("cpu"), dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)
    delta = trainer.model.get_base_model().get_input_embeddings().token_adapter.trainable_tokens_delta.default
    assert torch.is_tensor(delta) and len(delta) == 2
    assert (tmp_path / "out" / "base" / "config.json").is_file()
