"""Detects which engine wrote a checkpoint's optimizer states. Another engine fails on them, or silently skips them."""

from __future__ import annotations

import json
from pathlib import Path

from honed.errors import first_line
from honed.quantities import counted

PLAIN, FSDP, FSDP_IN_PARTS = "one process or DDP", "FSDP with whole states", "FSDP with states in parts"
_PLACES = {"optimizer.pt": PLAIN, "optimizer.bin": FSDP, "optimizer_0": FSDP_IN_PARTS}
_DEEPSPEED = "latest"  # a file with the name of the shards' folder


def deepspeed(*, zero3: bool, processes: int) -> str:
    """Describes DeepSpeed; its shards are for this number of processes."""
    return f"DeepSpeed {'with' if zero3 else 'below'} ZeRO-3 on {counted(processes, 'process', 'processes')}"


def engine_in(checkpoint: Path) -> str | None:
    """Describes the engine that wrote a checkpoint; None if it holds no optimizer states."""
    if not (checkpoint / _DEEPSPEED).is_file():
        return next((engine for name, engine in _PLACES.items() if (checkpoint / name).exists()), None)
    zero3 = any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
    processes = len(list(checkpoint.glob("rng_state_*.pth")))  # a single process has no number
    return deepspeed(zero3=zero3, processes=max(1, processes))


def why_another(checkpoint: Path, engine: str) -> str:
    """Returns why an engine, given in words, cannot resume a checkpoint; "" if it can."""
    found = engine_in(checkpoint)
    return "" if found in {None, engine} else f"its optimizer states are of {found}, and this run is {engine}"


def why_unreadable(checkpoint: Path) -> str:
    """Returns which file of another program's checkpoint is missing or damaged; "" if none is."""
    from safetensors import SafetensorError, safe_open

    if not checkpoint.is_dir():
        return "there is no such folder"
    file = checkpoint / "trainer_state.json"
    try:
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(checkpoint.glob("*.safetensors")):
            with safe_open(file, "pt"):
                pass
    except FileNotFoundError:
        return f"{file.name} is missing"
    except (OSError, ValueError, SafetensorError) as error:
        return f"{file.name} cannot be read ({first_line(error)})"
    return ""
