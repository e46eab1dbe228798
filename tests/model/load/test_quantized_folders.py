"""Folders quantised by others (fine-grained fp8, GPTQ, AWQ), written here bit by bit: they load and carry adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from honed.model.adapters.adapters import lora_config, ready_to_train
from honed.model.load.load import load_model
from honed.train.forward.seams import find_seams

CPU = torch.device("cpu")
GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
CONFIGS: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [GROUP, GROUP]},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
}


def packed(numbers: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Eight 4-bit numbers of a row in an int32, the first in the lowest bits."""
    eights = numbers.long().reshape(len(numbers), -1, 8)[..., list(order)] << (4 * torch.arange(8))
    return eights.sum(-1).to(torch.int32)  # beyond 31 bits it wraps, as it should


def written(kind: str, weight_OI: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors that stand for a weight in such a folder, and the weight that they mean."""
    rows, columns = weight_OI.shape
    if kind == "fp8":
        blocks = weight_OI.reshape(rows // GROUP, GROUP, columns // GROUP, GROUP)
        scales = blocks.abs().amax((1, 3)) / 448
        numbers = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        meant = (numbers.float() * scales[:, None, :, None]).reshape(rows, columns)
        return {"weight": numbers.reshape(rows, columns), "weight_scale_inv": scales}, meant
    groups = weight_OI.reshape(rows, -1, GROUP)
    zero = 8
    scales = (groups.abs().amax(-1) / 7).half()  # (out, groups)
    numbers = (groups / scales.float()[..., None]).round().clamp(-8, 7) + zero
    meant = ((numbers - zero) * scales.float()[..., None]).reshape(rows, columns)
    numbers_IO = numbers.reshape(rows, columns).T
    tensors = {"scales": scales.T.contiguous()}
    if kind == "awq":
        zeros = torch.full((columns // GROUP, rows), zero)
        return {**tensors, "qweight": packed(numbers_IO, AWQ_ORDER), "qzeros": packed(zeros, AWQ_ORDER)}, meant
    zeros = torch.full((columns // GROUP, rows), zero - 1)  # the format's own offset
    in_group = torch.arange(columns, dtype=torch.int32) // GROUP
    return {
        **tensors,
        "qweight": packed(numbers_IO.T).T.contiguous(),
        "qzeros": packed(zeros),
        "g_idx": in_group,
    }, meant


def folders(kind: str, model: Any, place: Path) -> tuple[str, str]:
    """The model quantised so, all but embeddings and head, and a plain one of the weights that this means.

    What is not quantised is in bfloat16 in both, as it is in public folders.
    """
    quantised, plain = {}, {}
    for name, weight in model.to(torch.bfloat16).float().state_dict().items():
        if name.endswith("proj.weight"):
            tensors, plain[name] = written(kind, weight)
            quantised |= {name.removesuffix("weight") + part: tensor for part, tensor in tensors.items()}
        elif name != "lm_head.weight":  # tied
            quantised[name], plain[name] = weight.to(torch.bfloat16), weight
    for folder, tensors, extra in (("q", quantised, {"quantization_config": CONFIGS[kind]}), ("plain", plain, {})):
        model.config.save_pretrained(place / folder)
        save_file(tensors, place / folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((place / folder / "config.json").read_text()) | extra
        (place / folder / "config.json").write_text(json.dumps(config))
    return str(place / "q"), str(place / "plain")


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Of all adapter weights, which are the same random ones for every model."""
    generator = torch.Generator().manual_seed(1)
    for _, p in sorted(model.named_parameters()):
        if p.requires_grad:
            p.data = 0.05 * torch.randn(p.shape, generator=generator)
    ids_BL = torch.arange(3, 23)[None]
    model(input_ids=ids_BL, labels=ids_BL, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("fp8", 1e-5), ("gptq", 0.01), ("awq", 0.01)],  # gptqmodel computes weights in 16 bits
)
@pytest.mark.filterwarnings("ignore::")
def test_gradients_are_those_of_the_weights_that_the_folder_means(
    kind: str, tolerance: float, tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    if kind != "fp8":
        pytest.importorskip("gptqmodel", reason="gptqmodel 7.6.0: BUILD_CUDA_EXT=0 pip install gptqmodel optimum")
    model = tiny_model(hidden_size=64, intermediate_size=128, head_dim=16, initializer_range=0.1)
    found = {}
    for folder in folders(kind, model, tmp_path):
        loaded = load_model(folder, device=CPU, dtype=torch.float32)
        trained, _ = ready_to_train(loaded, lora_config(r=4))  # on all linear layers
        seams = find_seams(trained)
        assert seams.flat and seams.scoring, seams.notes
        with torch.no_grad():  # after this, gptqmodel's layers would by themselves pass no gradient on
            scores = trained.eval()(torch.arange(3, 23)[None]).logits
        found[folder] = {**gradients(trained.train()), "scores": scores}
    ours, expected = found.values()
    assert ours.keys() == expected.keys() and len(ours) == 2 * 2 * 7 + 1
    for name, gradient in expected.items():
        assert gradient.norm() > 0
        assert (ours[name] - gradient).norm() < tolerance * gradient.norm(), name


def test_an_fp8_folder_becomes_one_format(tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    """Also in bfloat16, and trained whole."""
    model = tiny_model(hidden_size=64, intermediate_size=128, head_dim=16)
    folder, plain = folders("fp8", model, tmp_path)
    for dtype in (torch.float32, "bfloat16"):
        loaded, expected = (load_model(place, device=CPU, dtype=dtype) for place in (folder, plain))
        for (name, a), b in zip(loaded.named_parameters(), expected.parameters(), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b), name
        ready_to_train(loaded)
        ids_BL = torch.arange(3, 23)[None]
        loaded(input_ids=ids_BL, labels=ids_BL).loss.backward()
        assert all(p.grad is not None for p in loaded.parameters())
