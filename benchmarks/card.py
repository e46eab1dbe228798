"""The machine that a benchmark ran on: device, its speed by data sheet and by a large product, memory, versions."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Dense bfloat16 with float32 accumulation, TFLOP/s, from data sheets; the first key in the device's name counts.
PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H200 NVL": 835.0,
    "H100": 989.4,
    "H200": 989.4,
    "GH200": 989.4,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
ALWAYS = ("honed", "torch", "transformers")
SQUARE = 8192


def peak_tflops(name: str) -> float | None:
    """The data sheet's TFLOP/s; None for a device that is not in the table."""
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def gemm_tflops(device: str, square: int = SQUARE) -> float:
    """TFLOP/s of a square product of random bfloat16 matrices: the median of ten, after three warm-ups."""
    import torch

    a, b = (torch.randn(square, square, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    seconds = [seconds_of(device, lambda: torch.mm(a, b, out=out)) for _ in range(13)]
    return 2 * square**3 / statistics.median(seconds[3:]) / 1e12


def seconds_of(device: str, work: Callable[[], Any]) -> float:
    """Device time on a GPU, otherwise processor time of this process."""
    import torch

    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def memory_of(device: str, work: Callable[[], Any]) -> int:
    """Peak bytes in use while `work` ran, minus those before."""
    import torch

    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
        before = resident("VmRSS")
        work()
        return resident("VmHWM") - before
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident(mark: str) -> int:
    """VmRSS or VmHWM of this process, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{mark}:"))


def one_gpu() -> None:
    """Makes only the first GPU visible to this process and its children. Call it before CUDA is initialised."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def name_of_device(device: str) -> str:
    """The device in words; for a GPU with its driver and torch's CUDA version."""
    if device == "cpu":
        return f"{platform.machine()}, {os.cpu_count()} cores, 1 thread used"
    import torch

    which = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    command = ["nvidia-smi", f"--id={which}", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        name, driver = found.split(", ")
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        name, driver = torch.cuda.get_device_name(), "unknown"
    return f"{name}, driver {driver}, CUDA {torch.version.cuda}"


def versions(*others: str) -> dict[str, str]:
    """Versions of honed, torch, transformers, and those of the others that are installed."""
    found = {}
    for name in (*ALWAYS, *others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
