"""Keeps activations in host memory between the forward and backward pass.

torch's `save_on_cpu` also moves the weights that autograd saves, which frees no memory. Here parameters, their views
and small tensors stay on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

SMALLEST = 1024  # elements; copying smaller tensors is not worth the time


@dataclass(frozen=True, slots=True)
class _Moved:
    """A tensor's copy on the host."""

    copy: torch.Tensor
    device: torch.device


@contextmanager
def offloaded(device: torch.device, *, smallest: int = SMALLEST) -> Iterator[None]:
    """Keeps large activations on `device` that autograd saves on the host within the block.

    The copies are ordered with the device's work, so gradients are bit-identical.

    Args:
        smallest: tensors with fewer elements stay on the device.
    """
    pinned = device.type == "cuda"

    def pack(tensor: torch.Tensor) -> torch.Tensor | _Moved:
        if tensor.device.type != device.type or tensor.numel() < smallest or _is_weight(tensor):
            return tensor
        copy = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        copy.copy_(tensor, non_blocking=pinned)
        return _Moved(copy, tensor.device)

    def unpack(saved: torch.Tensor | _Moved) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        return saved.copy.to(saved.device, non_blocking=pinned)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def on_host(device: torch.device) -> bool:
    """Whether this device uses host memory."""
    return device.type == "cpu"


def _is_weight(tensor: torch.Tensor) -> bool:
    owner = tensor._base if tensor._base is not None else tensor
    return isinstance(owner, torch.nn.Parameter)
