"""A model's decoder layers, and which of them compute their activations again."""

from __future__ import annotations

from torch import nn


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of which each can compute its activations again, first to last; of a model that sees, the text's."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    return [layer for layer in layers if type(layer) is type(layers[-1])]


def keep_first(model: nn.Module, count: int) -> None:
    """Where checkpointing is on for all layers, leaves it on for the first so many."""
    for layer in decoder_layers(model)[count:]:
        layer.gradient_checkpointing = False  # type: ignore[assignment]
