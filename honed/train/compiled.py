"""`torch_compile=True`: a model's repeated layers are compiled, once for all of them and for all lengths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from honed.errors import ModelError
from honed.ops import attention


@contextmanager
def compiled_layers(model: nn.Module, *, backend: str, mode: str | None = None) -> Iterator[int]:
    """Within the block the model's repeated layers run compiled; yields how many modules, 0 within another such block.

    The modules stay the objects that they are: parameters, names, files and hooks do not change. Honed's attention is
    left out of the graphs, for what it does depends on where documents end: each layer has one graph before it and one
    behind it. Lengths are symbols from the first step on, so no batch is compiled for.

    Activation checkpointing happens in the layers' own `forward`, and a graph cannot be left inside of it. There the
    layers' children are compiled: attention, MLP, norms.

    Args:
        model: with its seams open.
        backend, mode: as of `torch.compile`.

    Raises:
        ModelError: there are no repeated layers.
    """
    layers = repeated_layers(model)
    if not layers:
        raise ModelError(f"torch_compile: {type(model).__name__} has no repeated layers.", fix="leave torch_compile out")
    regions = [region for layer in layers for region in _regions(layer)]
    todo = [region for region in regions if region._compiled_call_impl is None]
    with _attention_outside():
        try:
            for region in todo:
                region.compile(backend=backend, mode=mode, dynamic=True)
            yield len(todo)
        finally:
            for region in todo:
                region._compiled_call_impl = None  # torch has no other way back


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The members of all outermost lists of modules of one class: decoder layers, those of a vision tower."""
    found: list[nn.Module] = []
    for child in model.children():
        alike = isinstance(child, nn.ModuleList) and len({type(member) for member in child}) == 1
        found += list(child) if alike else repeated_layers(child)
    return found


def _regions(layer: nn.Module) -> list[nn.Module]:
    return list(layer.children()) if getattr(layer, "gradient_checkpointing", False) else [layer]


@contextmanager
def _attention_outside() -> Iterator[None]:
    from transformers import AttentionInterface

    attention.register()
    AttentionInterface.register(attention.NAME, torch.compiler.disable(attention.document_attention))
    try:
        yield
    finally:
        attention.register()
