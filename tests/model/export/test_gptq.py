"""Models in 4 bits by GPTQ: llm-compressor for real where it is installed, and what is refused before it is asked."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from honed.errors import ModelError
from honed.model.export import gptq
from honed.model.export.gptq import Row, export_gptq, group_size, loss_of

needs_llmcompressor = pytest.mark.skipif(
    find_spec("llmcompressor") is None, reason="llm-compressor is not installed: pip install llmcompressor"
)
ROWS = [Row(ids=[(7 * n + 3 * k) % 390 + 5 for k in range(40)], trained=[k > 9 for k in range(40)]) for n in range(24)]
LINEAR = "model.layers.1.mlp.down_proj"


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    tiny_model(hidden_size=64, intermediate_size=96, head_dim=16).save_pretrained(tmp_path / "whole")
    tiny_tokenizer.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def rounded(weight: torch.Tensor, group: int) -> torch.Tensor:
    """To the nearest of 16 even steps in each group, as llm-compressor scales them: without GPTQ."""
    grouped = weight.view(weight.shape[0], -1, group)
    scale = 2 * grouped.abs().amax(-1, keepdim=True) / 15
    return ((grouped / scale).round().clamp(-8, 7) * scale).view_as(weight)


@torch.no_grad()
def inputs_of(model: Any, name: str) -> torch.Tensor:
    """What one layer is fed on the calibration rows (N, columns)."""
    seen: list[torch.Tensor] = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    for row in ROWS[:16]:
        model(input_ids=torch.tensor([list(row.ids)]))
    hook.remove()
    return torch.cat(seen)


@needs_llmcompressor
@pytest.mark.filterwarnings("ignore")  # those of llm-compressor and of what it brings
def test_the_written_model_is_in_4_bits_and_nearer_than_rounding(folder: Path, tmp_path: Path) -> None:
    found = export_gptq(folder, tmp_path / "out", calibration=ROWS[:16], check=ROWS[16:])
    assert (found.tokens, found.group) == (8 * 30, 32)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert loss_of(plain, ROWS[16:])[0] == pytest.approx(found.before)
    assert loss_of(model, ROWS[16:])[0] == pytest.approx(found.after)  # the first forward unpacks the weights
    assert torch.equal(model.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    weight, original = model.get_submodule(LINEAR).weight.data, plain.get_submodule(LINEAR).weight.data
    assert max(len(group.unique()) for row in weight for group in row.split(found.group)) <= 16
    inputs = inputs_of(plain, LINEAR)
    error, plain_error = ((inputs @ (w - original).T).norm() for w in (weight, rounded(original, found.group)))
    assert 0 < error < plain_error


@needs_llmcompressor
@pytest.mark.filterwarnings("ignore")
def test_a_result_that_is_much_worse_is_not_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "ALLOWED", -100.0)
    with pytest.raises(ModelError, match="GPTQ failed"):
        export_gptq(folder, tmp_path / "out", calibration=ROWS[:2], check=ROWS[2:4])
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]


def test_loss_is_that_of_the_model_itself(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model().eval()
    labels = torch.tensor([[i if t else -100 for i, t in zip(ROWS[0].ids, ROWS[0].trained, strict=True)]])
    with torch.no_grad():
        expected = float(model(input_ids=torch.tensor([list(ROWS[0].ids)]), labels=labels).loss)
    assert loss_of(model, ROWS[:1]) == (pytest.approx(expected), 30)


@pytest.mark.parametrize(("width", "inner", "group"), [(256, 384, 128), (128, 192, 64), (64, 96, 32)])
def test_the_largest_group_that_fits_every_layer(
    width: int, inner: int, group: int, tiny_model: Callable[..., Any]
) -> None:
    assert group_size(tiny_model(hidden_size=width, intermediate_size=inner, head_dim=width // 4)) == group


def test_models_that_do_not_suit_it(tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="32 divides"):
        group_size(tiny_model(intermediate_size=72))
    with pytest.raises(ModelError, match="experts"):
        group_size(tiny_model("mixtral", num_local_experts=4, num_experts_per_tok=2))


def test_without_the_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install llmcompressor"):
        export_gptq(folder, tmp_path / "out", calibration=ROWS, check=ROWS)
