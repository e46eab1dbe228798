"""Experts in 4 bits, on bitsandbytes' CPU kernels: held against a model that has the same rounded numbers, unpacked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from honed.errors import ModelError
from honed.model.adapters.adapters import load_with_adapter, lora_config, ready_to_train
from honed.model.load import quantize
from honed.model.load.load import load_model
from honed.model.load.packed_experts import PackedWeight, is_stack, pack

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.skipif(
        quantize.find_spec("bitsandbytes") is None,
        reason="bitsandbytes is not installed: pip install 'honed[quant]'",
    ),
    # peft's, of names that transformers 6 will change
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`"),
]
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES = ("qwen3_moe", "mixtral", "gpt_oss", "llama4_text")
WEIGHTS = ("experts.gate_up_proj", "experts.down_proj")
IDS_BL = torch.arange(3, 35).reshape(2, 16)


def folder_of(family: str, tiny_model: Callable[..., Any], folder: Path) -> str:
    shape = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "tie_word_embeddings": False}
    model = tiny_model(family, **shape, **EXPERTS)
    for parameter in model.parameters():  # llama 4 leaves its experts empty
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return str(folder)


def loaded(folder: str, kind: str | None = "nf4+experts") -> Any:
    return load_model(folder, device=CPU, dtype=torch.float32, quantization=kind, trains_all=False)


def with_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of an adapter whose B is not zero."""
    generator = torch.Generator().manual_seed(1)
    for _, p in sorted(model.named_parameters()):
        if p.requires_grad:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    logits = model(input_ids=IDS_BL, use_cache=False).logits
    logits.float().logsumexp(-1).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("on", ["attention", "experts"])
def test_it_is_the_model_with_the_unpacked_numbers(
    on: str, family: str, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    """Logits and the adapter's gradients; the adapter's files fit the unpacked model."""
    folder = folder_of(family, tiny_model, tmp_path / "model")
    config = lora_config(r=2, target_modules=["q_proj"], target_parameters=WEIGHTS if on == "experts" else None)
    packed, notes = ready_to_train(loaded(folder), config)
    assert not any("not quantised" in note for note in notes)
    stacks = [name for name, p in packed.named_parameters() if isinstance(p, PackedWeight)]
    assert len(stacks) == 4
    logits_BLV, gradients = with_gradients(packed)
    packed.save_pretrained(tmp_path / "adapter")
    unpacked = quantize.dequantized(loaded(folder), torch.float32)
    assert not any(isinstance(p, PackedWeight) for p in unpacked.parameters())
    twin = load_with_adapter(str(tmp_path / "adapter"), device=CPU, base=unpacked)
    for name, p in twin.named_parameters():
        p.requires_grad_("lora_" in name)
    expected_BLV, wanted = with_gradients(twin)
    torch.testing.assert_close(logits_BLV, expected_BLV, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == wanted.keys()
    assert len(gradients) == (12 if on == "experts" else 4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-3 * float(wanted[name].abs().max()))


def test_the_numbers_are_bitsandbytes_own(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    folder = folder_of("mixtral", tiny_model, tmp_path)
    model, original = loaded(folder), loaded(folder, None)
    for name, weight in original.named_parameters():
        if is_stack(name, weight):
            rounded = dequantize_4bit(*quantize_4bit(weight.data, quant_type="nf4", compress_statistics=True))
            assert torch.equal(model.get_parameter(name).unpacked(), rounded)
    assert is_stack("model.layers.0.mlp.experts.down_proj", torch.zeros(1, 1, 1))


def test_nothing_unpacked_is_kept_for_the_backward_pass(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model = loaded(folder_of("qwen3_moe", tiny_model, tmp_path)).requires_grad_(False)
    model.set_experts_implementation("grouped_mm")
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    embedded = model.get_input_embeddings()(IDS_BL).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(inputs_embeds=embedded, use_cache=False)
    stacks = [tensor for tensor in kept if tensor.ndim == 3 and tensor.shape[0] == EXPERTS["num_experts"]]
    assert len(stacks) == 4
    assert all(isinstance(tensor, PackedWeight) for tensor in stacks)


def test_without_them_a_note_says_what_they_take(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model = loaded(folder_of("mixtral", tiny_model, tmp_path), "nf4")
    count = sum(p.numel() for name, p in model.named_parameters() if is_stack(name, p))
    _, notes = ready_to_train(model, lora_config(r=2, target_modules=["q_proj"]))
    assert any(f"{count:,} numbers in stacked experts are not quantised" in note for note in notes)


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # peft's, of patterns that it sets itself
def test_an_adapter_on_all_layers_tells_of_quantised_shared_experts(
    tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    """peft takes their names for the experts', and cannot add an update to a weight in 4 bits."""
    shape = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1}
    tiny_model("glm4_moe", hidden_size=64, first_k_dense_replace=1, **shape).save_pretrained(tmp_path)
    adapted, [note] = ready_to_train(loaded(str(tmp_path)), lora_config(r=2))
    assert "mlp.gate_proj" in note and "shared_experts.up_proj" in note and "those that are not quantised" in note
    assert adapted(input_ids=IDS_BL, labels=IDS_BL, use_cache=False).loss.isfinite()


def test_packed_weights_are_tensors_that_cannot_be_written_to() -> None:
    weight_EOI = torch.randn(3, 8, 64)
    packed = pack(weight_EOI, kind="fp4", twice=False)
    assert (packed.shape, packed.dtype, packed.numel()) == (weight_EOI.shape, torch.float32, weight_EOI.numel())
    assert torch.equal(packed.transpose(1, 2) + 0, packed.unpacked().transpose(1, 2))
    assert torch.equal(packed.transpose(0, 1), packed.unpacked().transpose(0, 1))
    assert torch.equal(copy.deepcopy(packed) + 0, packed.unpacked())
    assert torch.equal(packed.to(torch.float64), packed.unpacked().double())
    for write in (
        packed.zero_,
        lambda: packed.copy_(weight_EOI),
        lambda: torch.add(weight_EOI, 1, out=packed),
    ):
        with pytest.raises(ModelError, match="cannot be written to"):
            write()


def test_a_whole_model_with_packed_experts_is_not_saved(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model = loaded(folder_of("mixtral", tiny_model, tmp_path / "model"))
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "saved")
