"""Activations kept in the memory of the host between forward and backward, instead of the device's.

torch's own `save_on_cpu` moves every tensor that autograd saves, weights among them, which frees nothing and copies
much. Here, what stays on the device anyway (parameters and views of them) and what is small is left where it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

SMALLEST = 1024  # elements; a copy of less costs more time than it frees memory


@dataclass(frozen=True, slots=True)
class _Moved:
    """A tensor's copy on the host."""

    copy: torch.Tensor
    device: torch.device


@contextmanager
def offloaded(device: torch.device, *, smallest: int = SMALLEST) -> Iterator[None]:
    """Within this block, large activations on `device` that autograd saves wait on the host.

    The copies are ordered with the device's own work, so their values are those that were saved; gradients do not
    change by a bit.

    Args:
        smallest: tensors of fewer elements stay where they are.
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
    """Whether what is on this device is in the host's memory anyway."""
    return device.type == "cpu"


def _is_weight(tensor: torch.Tensor) -> bool:
    owner = tensor._base if tensor._base is not None else tensor
    return isinstance(owner, torch.nn.Parameter)
