"""Experts that follow autocast: on CUDA, which a CPU stands in for here; test_loop_on_cuda.py has the device's side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from honed.train.forward import experts
from honed.train.forward.experts import LIBRARY, NAME, experts_in_autocast

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
IDS = torch.arange(3, 33)[None]


def loss_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_a_cpu_computes_as_before(tiny_model: Any) -> None:
    model = tiny_model("qwen3_moe", **MOE).train()
    expected = loss_and_gradients(model)
    with experts_in_autocast(model) as there:
        assert there and model.config._experts_implementation == NAME
        found = loss_and_gradients(model)
    assert model.config._experts_implementation == LIBRARY
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "mixtral"])
def test_in_half_precision_they_give_the_same_up_to_its_rounding(
    family: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "compute_dtype", lambda _: torch.bfloat16)
    model = tiny_model(family, **{**MOE, "num_local_experts": 4}, initializer_range=0.05).train()
    seen: list[torch.dtype] = []
    product = torch.nn.functional.grouped_mm
    monkeypatch.setattr("torch.nn.functional.grouped_mm", lambda a, b, **k: seen.append(b.dtype) or product(a, b, **k))
    loss, gradients = loss_and_gradients(model)
    assert set(seen) == {torch.float32}  # what the library does by itself
    seen.clear()
    with experts_in_autocast(model):
        found_loss, found = loss_and_gradients(model)
    assert set(seen) == {torch.bfloat16}
    torch.testing.assert_close(found_loss, loss, rtol=1e-3, atol=0)
    for name, expected in gradients.items():
        assert found[name].dtype == torch.float32
        if "expert" in name:
            assert (found[name] - expected).norm() <= 0.03 * expected.norm(), name


def test_what_is_saved_meanwhile_is_the_librarys(tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe", **MOE)
    with experts_in_autocast(model):
        model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_models_without_experts_and_other_choices_are_left_alone(tiny_model: Any) -> None:
    eager = tiny_model("qwen3_moe", **MOE)
    eager.set_experts_implementation("eager")
    for model, before in ((tiny_model("llama"), None), (eager, "eager")):
        with experts_in_autocast(model) as there:
            assert not there
        assert before in (None, model.config._experts_implementation)
