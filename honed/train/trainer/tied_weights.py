"""Tied weights, which have several names, in checkpoints."""

from __future__ import annotations

import torch
from torch import nn


def lacking(model: nn.Module, missing: list[str]) -> list[str]:
    """Returns the missing names whose tensor was not loaded under another name either."""
    state = model.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in state.items() if name not in missing}
    return [name for name in missing if name not in state or id(state[name]) not in loaded]


def without_copies(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Removes tied duplicates from gathered weights: gathering copies each name, transformers saves only one."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    pairs = {name: source for name, source in tied.items() if name in state and source in state}
    copies = {name for name, source in pairs.items() if torch.equal(state[name], state[source])}
    return {name: tensor for name, tensor in state.items() if name not in copies}
