"""`torch_compile=True`: compiles a model's repeated layers, once for all of them and for all lengths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from honed.errors import ModelError
from honed.ops import attention
from honed.train.options.surroundings import CUDA_GRAPH_MODES


@contextmanager
def compiled_layers(
    model: nn.Module, *, backend: str, mode: str | None = None, checkpointed: bool = False
) -> Iterator[int]:
    """Compiles the model's repeated layers within the block; yields the number of modules, 0 in a nested block.

    The modules remain the same objects with the same parameters and hooks. honed's attention depends on where documents
    end and stays outside the graphs, so each layer has one graph before and one after it. Lengths are dynamic from the
    first step on, so that no batch causes recompilation; in modes with CUDA graphs they are static.

    Args:
        model: a model with open seams.
        backend, mode: as in `torch.compile`.
        checkpointed: whether the layers recompute their activations. A layer's checkpointed `forward` allows no graph
            break, so its children are compiled instead: attention, MLP, norms.

    Raises:
        ModelError: there are no repeated layers.
    """
    layers = repeated_layers(model)
    if not layers:
        raise ModelError(f"{type(model).__name__} has no repeated layers to compile.", fix="leave torch_compile out")
    regions = [region for layer in layers for region in (layer.children() if checkpointed else [layer])]
    todo = [region for region in regions if region._compiled_call_impl is None]
    dynamic = None if mode in CUDA_GRAPH_MODES else True
    with _attention_outside():
        try:
            for region in todo:
                region.compile(backend=backend, mode=mode, dynamic=dynamic)
            yield len(todo)
        finally:
            for region in todo:
                region._compiled_call_impl = None  # torch has no other way to undo it


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the members of all outermost module lists of one class: the layers of decoder and vision tower."""
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.ModuleList) and len({type(member) for member in child}) == 1:
            found += child
        else:
            found += repeated_layers(child)
    return found


@contextmanager
def _attention_outside() -> Iterator[None]:
    from transformers import AttentionInterface

    plain = attention.document_attention
    AttentionInterface.register(attention.NAME, torch.compiler.disable(plain))
    try:
        yield
    finally:
        AttentionInterface.register(attention.NAME, plain)
