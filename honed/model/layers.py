"""A model's decoder layers, which of them recompute their activations, and the matrices in them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that support gradient checkpointing, first to last; in a vision-language model those of the text."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    return [layer for layer in layers if type(layer) is type(layers[-1])]


def keep_first(model: nn.Module, count: int) -> None:
    """Switches checkpointing off for all but the first `count` layers."""
    for layer in decoder_layers(model)[count:]:
        layer.gradient_checkpointing = False  # type: ignore[assignment]


def hidden_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained 2-D weights of hidden layers: linear layers, routers, LoRA's A and B.

    Without embeddings and the head (and adapters on them), vectors, and experts stacked in three dimensions (and their
    LoRA).
    """
    aside = {id(p) for p in _no_matrices(model)}
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return {name: p for name, p in trained if p.ndim == 2 and name.endswith("weight") and id(p) not in aside}


def _no_matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        yield from head.parameters()
    for module in model.modules():
        stacked = getattr(module, "num_experts", 1) != 1 and hasattr(module, "lora_A")  # peft's, for 3-D parameters
        if stacked or isinstance(module, nn.Embedding):
            yield from module.parameters()
        elif type(module).__module__.startswith("peft."):  # a table of angles, magnitudes; its matrices are nn.Linear
            yield from module.parameters(recurse=False)
