"""Exported models that see keep their vision tower and their processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("PIL", reason="images need Pillow: pip install pillow")
from vision_models import make_vlm, picture

from honed.model.adapters.adapters import attach, lora_config
from honed.model.export.export import Probe, export

PROBES = [Probe(ids=range(100, 130), n_prompt=9)]


def logits(model: Any, processor: Any) -> torch.Tensor:
    text = "<start_of_turn>user\n<start_of_image>which colour ?<end_of_turn>"
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**processor(text=[text], images=[[picture()]], return_tensors="pt")).logits
    return found


@pytest.mark.parametrize("processor_of", ["run", "base"])
def test_an_adapter_is_merged_with_tower_and_processor(tmp_path: Path, processor_of: str) -> None:
    """The processor is the run's; a run on text alone has only a tokenizer, so it is the base's."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = make_vlm("gemma3")
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model.name_or_path = model.config._name_or_path = str(tmp_path / "base")
    adapted = attach(model, lora_config(target_modules=["q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "run")
    (processor if processor_of == "run" else processor.tokenizer).save_pretrained(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", probes=PROBES)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = logits(adapted, processor)
    torch.testing.assert_close(logits(merged, AutoProcessor.from_pretrained(tmp_path / "out")), expected)
    with adapted.disable_adapter():
        assert not torch.allclose(logits(adapted, processor), expected, atol=1e-2)


def test_a_whole_model_with_a_class_for_text_keeps_its_tower(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Qwen3.5: AutoModelForCausalLM reads the same folder without the tower."""
    from model.adapters.test_adapter_class import TEXT, VISION
    from transformers import AutoModelForImageTextToText, Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = {**TEXT, "vocab_size": len(tiny_tokenizer)}
    model = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=VISION))
    model.save_pretrained(tmp_path / "run")
    tiny_tokenizer.save_pretrained(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", probes=[Probe(ids=range(3, 20), n_prompt=4)])
    written = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(written[name], weight) for name, weight in model.state_dict().items())
