"""Small MiniMind models of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from honed.model.minimind.config import YARN, MiniMindConfig
from honed.model.minimind.minimind import MiniMindForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
MOE: dict[str, Any] = {"use_moe": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "qk_norm": {"qk_norm": True},
    "yarn": {
        "rope_parameters": {**YARN, "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": None}
    },
    "moe": MOE,
    "moe plain": {**MOE, "norm_topk_prob": False, "n_shared_experts": 2},
    "moe routed only": {**MOE, "num_experts_per_tok": 1, "n_shared_experts": 0},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str = "dense", *, dtype: torch.dtype = torch.float64, **changes: Any) -> MiniMindForCausalLM:
    torch.manual_seed(1)
    model = MiniMindForCausalLM(MiniMindConfig(**{**SHAPE, **KINDS[kind], **changes})).to(dtype).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones would hide a norm that is left out
            parameter.data.uniform_(0.5, 1.5)
    return model


def some_ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 400, shape)
