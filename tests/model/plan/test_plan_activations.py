"""What a layer is said to keep, against what autograd does keep: models of one and of two layers, told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from honed.model.layers import keep_first
from honed.model.minimind.minimind import register
from honed.model.plan.activations import Formats, saved_per_layer, saved_per_token
from honed.model.plan.sizes import adapter_of, sizes_of

TOKENS = 40
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma3_text": {},
    "minimind": {},
    "qwen3_moe": MOE,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
LORAS = {"all": {"r": 3}, "qv": {"r": 3, "target_modules": ["q_proj", "v_proj"]}}


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lora", [None, "all", "qv"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:The following rank_pattern", "ignore:The following alpha_pattern")
def test_saved_tensors(family: str, lora: str | None, half: bool, tiny_model: Any) -> None:
    """Within 2 percent: padding of masks and counts of tokens per expert are left out of the formulas."""
    if lora:
        pytest.importorskip("peft")
    register()  # MiniMind, with transformers
    changes = {"num_attention_heads": 6, "hidden_size": 48, "head_dim": 8, "intermediate_size": 112, **FAMILIES[family]}
    one, two = (tiny_model(family, num_hidden_layers=layers, **changes) for layers in (1, 2))
    sizes = sizes_of(one.config)
    adapter = adapter_of(one.config, LORAS[lora]) if lora else None
    formats = Formats(weight=2 if half and lora else 4, compute=2 if half else 4, copies_attention=True)
    measured = [saved_bytes(model, lora, half) for model in (one, two)]
    planned = TOKENS * sum(saved_per_token(sizes, formats, adapter).values()) + saved_per_layer(sizes, formats, adapter)
    assert planned == pytest.approx(measured[1] - measured[0], rel=0.02)


@pytest.mark.parametrize("lora", [None, "all"])
def test_a_layer_that_is_computed_again_keeps_its_input_only(lora: str | None, tiny_model: Any) -> None:
    """Three layers of which one does so keep what two keep, and no more than its input and a copy of it."""
    if lora:
        pytest.importorskip("peft")
    two, three = (tiny_model("llama", num_hidden_layers=layers) for layers in (2, 3))
    enable = getattr(three, "activation_checkpointing_enable", None) or three.gradient_checkpointing_enable
    enable()
    keep_first(three, 1)
    more = saved_bytes(three, lora, False) - saved_bytes(two, lora, False)
    assert 0 <= more < 2.1 * TOKENS * two.config.hidden_size * 4


def saved_bytes(model: Any, lora: str | None, half: bool) -> int:
    """Storages that autograd keeps in a step of honed's, parameters left out."""
    from honed.data.batch.collate import FlatCollator
    from honed.data.batch.table import PackedRow
    from honed.train.forward import seams

    if lora:
        from honed.model.adapters.adapters import attach, lora_config

        model = attach(model.to(torch.bfloat16) if half else model, lora_config(**LORAS[lora]))
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = np.arange(TOKENS, dtype=np.int32) + 3
    weights = np.r_[0.0, np.ones(TOKENS - 1)].astype(np.float32)
    batch = FlatCollator()([PackedRow(input_ids=ids, weights=weights, lengths=(TOKENS,))])
    found = seams.Seams(flat=True, scoring=True)
    with seams.opened(model.train(), found) as head, torch.autocast("cpu", torch.bfloat16, enabled=half):
        embedded = seams.base_model(model).get_input_embeddings()  # tied weights look like activations otherwise
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = seams.token_scores(model, batch, head)
    assert embedded is not None and result is not None
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own)
