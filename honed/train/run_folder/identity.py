"""Identifies the model and rows that a checkpoint belongs to."""

from __future__ import annotations

import hashlib
import json
from itertools import chain
from typing import Any

import numpy as np

from honed.data.batch.table import PackedRows

_COMPARED = 64  # values of each parameter


def identity_of_model(model: Any) -> dict[str, Any]:
    """Returns what must match in a checkpoint of this model, as JSON: shapes, dtypes, frozen weights and adapters."""
    weights = hashlib.sha256()
    for name, p in model.named_parameters():
        weights.update(f"{name} {tuple(p.shape)} {p.dtype} {p.requires_grad}".encode())
        if not p.requires_grad:  # not in the checkpoint; a change shows in the first values
            weights.update(_values(p.detach().flatten()[:_COMPARED]))
    adapters = {name: adapter.to_dict() for name, adapter in getattr(model, "peft_config", {}).items()}
    return {"adapter": json.loads(json.dumps(adapters, default=_plain)), "model": weights.hexdigest()}


def digest_of_weights(model: Any) -> str:
    """Returns the SHA-256 of each parameter's first and last values, which include added tokens and new heads."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        values = parameter.detach().flatten()
        digest.update(_values(values[:_COMPARED]) + _values(values[-_COMPARED:]))
    return digest.hexdigest()


def digest_of_rows(rows: Any) -> str:
    """Returns the SHA-256 of prepared rows; of others only type and number, as reading them may be costly."""
    if not isinstance(rows, PackedRows):
        return f"{type(rows).__name__} of {len(rows) if hasattr(rows, '__len__') else 'unknown length'}"
    digest, table = hashlib.sha256(), rows.table
    lengths = np.array([len(row) for row in rows.rows], dtype=np.int64)
    order = np.fromiter(chain.from_iterable(rows.rows), dtype=np.int64)
    for array in (table.input_ids, table.weights, table.starts, lengths, order):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _values(values: Any) -> bytes:
    """Returns the values as bytes; empty for a parameter on the meta device."""
    return b"" if values.is_meta else bytes(values.float().cpu().numpy().tobytes())


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
