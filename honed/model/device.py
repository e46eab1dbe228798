"""The device and dtype to use, and how fast they are."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from honed.errors import RecipeError, first_line
from honed.ops.products import linear

# With twice the speed of products (AVX-512 bf16) six LoRA steps of SmolLM2-135M took as long as in float32 and reached
# a loss of 4.17 instead of 3.40.
WORTH_ROUNDING = 4


def pick_device() -> torch.device:
    """CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def named_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        RecipeError: there is no such device, or it cannot be used on this machine.
    """
    try:
        torch.empty(0, device=name)
    except Exception as error:  # of torch or a driver: each its own kind
        raise RecipeError(
            f"The device {name!r} cannot be used here: {first_line(error)}",
            fix="take cpu, or see what `honed doctor` finds",
        ) from None
    return torch.device(name)


def pick_dtype(device: torch.device) -> torch.dtype:
    """The fastest dtype of this device that does not cost training quality.

    On CUDA bfloat16, if the GPU computes in it; before Ampere torch emulates it, slowly. On a CPU only if its products
    are `WORTH_ROUNDING` times as fast as float32's, as with matrix units (Intel AMX): other operations are slower in
    it, and small updates are rounded away.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and WORTH_ROUNDING * matmul_seconds(torch.bfloat16) < matmul_seconds(torch.float32):
        return torch.bfloat16
    return torch.float32


def matmul_seconds(dtype: torch.dtype, size: int = 384) -> float:
    """Best time of a (size x size) matrix product on the CPU, in seconds, by the library that training uses."""
    a = _square(size, dtype)
    best = float("inf")
    for _ in range(4):  # the first also warms up
        start = time.perf_counter()
        linear(a, a)
        best = min(best, time.perf_counter() - start)
    return best


def _square(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Random numbers from a separate generator: measuring must not change the numbers that training draws."""
    return torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(dtype)


def cpu_flops() -> float:
    """Operations per second of float32 matrix products on this CPU, measured now."""
    return 2 * 768**3 / matmul_seconds(torch.float32, size=768)


def matmul_speed(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.15) -> float:
    """Best rate of floating-point operations per second in products of square matrices (2 n^3 each).

    Args:
        seconds: about how long to measure; n doubles from 256 until one product takes a tenth of that.
    """
    size, took = 256, 0.0
    while True:
        a = _square(size, dtype).to(device)
        took = _best_seconds(lambda a=a: a @ a, device, seconds=seconds / 4)  # type: ignore[misc]
        if took > seconds / 10 or size >= 8192:
            return float(2 * size**3 / took)
        size *= 2


def copy_speed(device: torch.device, *, n_bytes: int = 1 << 27) -> float:
    """Bytes read and written per second when a tensor of `n_bytes` is copied on the device."""
    source = torch.zeros(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * n_bytes / _best_seconds(lambda: target.copy_(source), device, seconds=0.15)


def _best_seconds(work: Callable[[], object], device: torch.device, *, seconds: float) -> float:
    """The shortest time of one call; the first call warms up and is not counted."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        _wait_for(device)
        start = time.perf_counter()
        work()
        _wait_for(device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
