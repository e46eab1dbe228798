"""Which device and number format to use, found by asking and measuring."""

from __future__ import annotations

import time

import torch


def pick_device() -> torch.device:
    """CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """The format that this device multiplies fastest without losing training quality.

    On CUDA bfloat16 where the card has it. Elsewhere bfloat16 only when it is measured to be faster than float32: on
    CPUs without bf16 units it is several times slower.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and matmul_seconds(torch.bfloat16) < 0.7 * matmul_seconds(torch.float32):
        return torch.bfloat16
    return torch.float32


def matmul_seconds(dtype: torch.dtype, size: int = 384, repeats: int = 3) -> float:
    """Best time of a (size x size) matrix product on the CPU, in seconds."""
    a = torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(repeats + 1):  # the first also warms up
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return best
