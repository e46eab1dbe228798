"""Total and free memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def host_memory() -> tuple[int, int]:
    """Total and free bytes of the machine or, if smaller, of the container (cgroup v2)."""
    import psutil

    memory = psutil.virtual_memory()
    limit, used = _words("/sys/fs/cgroup/memory.max"), _words("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit() and int(limit) < memory.total:
        return int(limit), min(memory.available, max(0, int(limit) - int(used)))
    return memory.total, memory.available


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still allocate on the device; None if unknown.

    On CUDA what the driver has free, and what torch's allocator holds unused.
    """
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return host_memory()[1] if device.type == "cpu" else None


def _words(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:  # another system, or no such limit
        return ""
