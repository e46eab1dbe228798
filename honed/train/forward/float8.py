"""`fp8=True`: the linear layers inside a model's repeated layers multiply in float8, using torchao.

Inputs, weights and gradients are scaled by their largest magnitude and cast for each product (float8 e4m3, gradients
e5m2); outputs have the input's dtype. The weights that are updated and saved keep theirs. Source: Micikevicius et al.,
arXiv:2209.05433.

Not measured on a GPU; tested on a CPU with torchao's emulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from torch import nn

from honed.errors import ModelError
from honed.ops.products import PLAIN
from honed.train.forward.compiled import repeated_layers

MULTIPLE = 16  # the kernels need both sides of a weight divisible by it
KEPT = ("lora_", "gate.", "router.")  # adapters are small, and routers need precision


@contextmanager
def float8_linears(model: nn.Module, *, emulate: bool = False) -> Iterator[int]:
    """Runs these layers in float8 within the block, and restores the model afterwards; yields their number.

    The head, the embeddings, adapters' matrices, routers and quantised layers are not changed.

    Args:
        model: a model with open seams.
        emulate: round to float8 and multiply in the input's dtype, on any device.

    Raises:
        ModelError: the model has no such layers.
    """
    torchao = import_module("torchao.float8")
    blocks = repeated_layers(model)
    places = [
        (parent, name, child)
        for block in blocks
        for path, parent in block.named_modules()
        for name, child in parent.named_children()
        if _fits(child, f"{path}.{name}.")
    ]
    if not places and not any(_is_float8(module) for module in model.modules()):
        raise ModelError(f"fp8: {type(model).__name__} has no linear layers that fit.", fix="leave fp8 out")
    chosen = {id(child) for _, _, child in places}
    config = torchao.Float8LinearConfig(emulate=emulate, pad_inner_dim=True)  # the number of tokens varies
    for block in blocks:
        torchao.convert_to_float8_training(block, module_filter_fn=lambda child, _: id(child) in chosen, config=config)
    try:
        yield len(places)
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


def _fits(layer: nn.Module, path: str) -> bool:
    if type(layer) not in PLAIN or any(f".{word}" in f".{path}" for word in KEPT):
        return False
    return all(size % MULTIPLE == 0 for size in layer.weight.shape)  # type: ignore[union-attr]


def _is_float8(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Float8Linear"
