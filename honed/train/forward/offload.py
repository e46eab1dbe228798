"""Activations kept in host memory between forward and backward.

torch's `save_on_cpu` also moves the weights that autograd saves, which frees nothing. Here parameters, views of them
and small tensors stay on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

SMALLEST = 1024  # elements; smaller copies are not worth their time


@dataclass(frozen=True, slots=True)
class _Moved:
    """A tensor's copy on the host."""

    copy: torch.Tensor
    device: torch.device


@contextmanager
def offloaded(device: torch.device, *, smallest: int = SMALLEST) -> Iterator[None]:
    """Within this block, large activations on `device` that autograd saves are kept on the host.

    The copies are ordered with the device's work, so gradients are the same to the bit.

    Args:
        smallest: tensors of fewer elements stay on the device.
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
    """Whether this device's memory is the host's."""
    return device.type == "cpu"


def _is_weight(tensor: torch.Tensor) -> bool:
    owner = tensor._base if tensor._base is not None else tensor
    return isinstance(owner, torch.nn.Parameter)
