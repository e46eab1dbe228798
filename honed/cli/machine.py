"""The machine to plan for: this one, or a GPU given by name or memory size."""

from __future__ import annotations

import re
from dataclasses import dataclass

from honed.errors import RecipeError

# GB of memory, and peak dense bfloat16 operations per second, as published by the vendors.
GPUS = {
    "rtx-3090": (24, 71e12),
    "rtx-4090": (24, 165e12),
    "l4": (24, 121e12),
    "l40s": (48, 362e12),
    "a100-40gb": (40, 312e12),
    "a100-80gb": (80, 312e12),
    "h100": (80, 989e12),
    "h200": (141, 989e12),
}
UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?$", flags=re.IGNORECASE)
RATE = re.compile(r"^(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMGTP]?)(?:FLOPS)?$", flags=re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine to plan for: memory in bytes, operations per second (None if unknown), and both in words."""

    device: str
    memory: float
    flops: float | None
    says: str


def machine(gpu: str | None, flops: str | None) -> Machine:
    """Returns the machine to plan for; this one unless a GPU is named.

    Raises:
        RecipeError: an unknown GPU, or a size that cannot be parsed.
    """
    rate = None if flops is None else read_rate(flops)
    if gpu is None:
        return _this_machine(rate)
    if gpu.lower() in GPUS:
        gigabytes, peak = GPUS[gpu.lower()]
        return Machine(device="cuda", memory=gigabytes * 1e9, flops=rate or peak, says=f"{gpu} ({gigabytes} GB)")
    return Machine(device="cuda", memory=read_size(gpu), flops=rate, says=f"a GPU with {gpu}")


def read_size(text: str) -> float:
    """Parses bytes: "24GB" is 24 * 10^9, "24GiB" is 24 * 2^30, a number alone is in GB.

    Raises:
        RecipeError: it is neither a size nor a known GPU.
    """
    found = SIZE.match(text.strip())
    if found is None or float(found[1]) == 0:
        raise RecipeError(f"--gpu is {text!r}.", fix=f"give a size such as 24GB, or one of {', '.join(GPUS)}")
    unit = (found[2] or "G").upper()
    return float(found[1]) * (2.0 ** (10 * ("KMGT".index(unit) + 1)) if found[3] else UNITS[unit])


def read_rate(text: str) -> float:
    """Parses operations per second: "400T" is 4e14.

    Raises:
        RecipeError: it cannot be parsed.
    """
    found = RATE.match(text.strip())
    if found is None or float(found[1]) == 0:
        raise RecipeError(f"--flops is {text!r}.", fix="give operations per second, such as 400T or 4e14")
    return float(found[1]) * UNITS.get(found[2].upper(), 1.0)


def _this_machine(rate: float | None) -> Machine:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        peak = next((flops for name, (_, flops) in GPUS.items() if _alike(name, properties.name)), None)
        memory, says = float(properties.total_memory), f"{properties.name} ({gb(properties.total_memory)} GB)"
        return Machine(device="cuda", memory=memory, flops=rate or peak, says=says)
    import psutil

    from honed.model.device import cpu_flops

    memory = float(psutil.virtual_memory().total)
    return Machine(device="cpu", memory=memory, flops=rate or cpu_flops(), says=f"this CPU ({gb(memory)} GB of memory)")


def _alike(known: str, name: str) -> bool:
    return all(part.removesuffix("gb") in name.lower() for part in known.split("-"))


def gb(size: float) -> str:
    """Formats bytes as GB of 10^9."""
    return f"{size / 1e9:,.2f}"
