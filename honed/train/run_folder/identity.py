"""Which model a checkpoint belongs to, so that another run's is not taken for one's own."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_COMPARED = 64  # first values of each frozen parameter


def identity_of_model(model: Any) -> dict[str, Any]:
    """What a checkpoint of this model must agree with, as JSON: shapes, formats, frozen weights and adapters."""
    weights = hashlib.sha256()
    for name, p in model.named_parameters():
        weights.update(f"{name} {tuple(p.shape)} {p.dtype} {p.requires_grad}".encode())
        if not p.requires_grad:  # in no checkpoint, so it must be the same again; its first values tell
            weights.update(p.detach().flatten()[:_COMPARED].float().cpu().numpy().tobytes())
    adapters = {name: adapter.to_dict() for name, adapter in getattr(model, "peft_config", {}).items()}
    return {"adapter": json.loads(json.dumps(adapters, default=_plain)), "model": weights.hexdigest()}


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
