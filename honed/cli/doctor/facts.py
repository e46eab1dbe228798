"""The facts that `honed doctor` collects about this machine; nothing here judges or fails."""

from __future__ import annotations

import locale
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from honed.model.memory import host_memory

# Environment variables that change how honed runs; only these are read, and none may hold a secret.
SETTINGS = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "HONED_CACHE",
    "OMP_NUM_THREADS",
    "PYTHONUTF8",
    "TOKENIZERS_PARALLELISM",
)
DEVELOPERS_EXTRAS = {"dev", "test", "bench"}
_GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A distribution that honed requires: the installed version (None if missing), the requirement, and its extra."""

    name: str
    version: str | None
    wanted: str
    fits: bool
    extra: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder that honed writes to; `fault` is the system's error, "" if it can be written."""

    role: str
    path: str
    free_gb: float | None
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The device that computes. Speeds are measured, in 1e12 floating-point operations and 1e9 bytes per second.

    `cuda_fault` says why torch does not use the machine's NVIDIA card; "" if it does, or if there is none.
    """

    kind: str
    name: str
    threads: int
    memory_gb: float | None = None
    memory_free_gb: float | None = None
    has_bfloat16: bool = True
    cuda_fault: str = ""
    tflops: Mapping[str, float] = field(default_factory=dict)
    copy_gb_per_second: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All facts. `import_fault` says why torch or transformers cannot be imported; "" if they can."""

    python: str
    system: str
    packages: tuple[Package, ...]
    import_fault: str
    device: Device | None
    cores: int
    memory_gb: float | None
    memory_free_gb: float | None
    shared_memory_gb: float | None
    places: tuple[Place, ...]
    encoding: str
    can_fork: bool
    settings: Mapping[str, str]
    default_model_fault: str


def gather() -> Facts:
    """Collects and measures; takes a few seconds, mostly to import torch."""
    from honed.cache import cache_root

    import_fault = _import_fault()
    total, free = _memory()
    return Facts(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=packages(requires_of("honed")),
        import_fault=import_fault,
        device=None if import_fault else _device(),
        cores=cores(),
        memory_gb=total,
        memory_free_gb=free,
        shared_memory_gb=_free_gb(Path("/dev/shm")) if sys.platform == "linux" else None,
        places=(place("cache", cache_root()), place("output", Path.cwd())),
        encoding=getattr(sys.stdout, "encoding", None) or locale.getpreferredencoding(False),
        can_fork=sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods(),
        settings={name: os.environ[name] for name in SETTINGS if name in os.environ},
        default_model_fault=_default_model_fault(import_fault),
    )


def requires_of(name: str) -> list[str] | None:
    """The requirements of an installed distribution; None if it is not installed."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return None


def packages(requirements: list[str] | None) -> tuple[Package, ...]:
    """Compares requirements like "peft>=0.19" and 'pillow>=10; extra == "vision"' with the installed packages."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, requirements or ()):
        marker = str(requirement.marker or "")
        extra = marker.partition('extra == "')[2].partition('"')[0]
        if extra in DEVELOPERS_EXTRAS or (not extra and requirement.marker and not requirement.marker.evaluate()):
            continue
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            there = None
        fits = there is not None and requirement.specifier.contains(there, prereleases=True)
        wanted = str(requirement.specifier)
        found.append(Package(name=requirement.name, version=there, wanted=wanted, fits=fits, extra=extra))
    return tuple(found)


def place(role: str, path: Path) -> Place:
    """Whether a folder, or its nearest existing parent, can be written, and how much space is free."""
    there = next((folder for folder in (path, *path.parents) if folder.exists()), path)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"honed")
    except OSError as error:
        return Place(role=role, path=str(path), free_gb=_free_gb(there), fault=error.strerror or str(error))
    return Place(role=role, path=str(path), free_gb=_free_gb(there))


def cores() -> int:
    """Processor cores that this process may use, limited by its affinity and its container."""
    own = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota, _, period = _words("/sys/fs/cgroup/cpu.max").partition(" ")
    return min(own, max(1, -(-int(quota) // int(period)))) if quota.isdigit() and period.isdigit() else own


def _memory() -> tuple[float | None, float | None]:
    """Total and free memory in GB, of the machine or, if less, of the container."""
    try:
        total, free = host_memory()
    except ImportError:
        return None, None
    return total / _GB, free / _GB


def _import_fault() -> str:
    for name in ("torch", "transformers"):
        try:
            __import__(name)
        except Exception as error:  # a broken build may raise anything: OSError, RuntimeError, ...
            return f"{name} cannot be imported: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""


def _device() -> Device:
    import torch

    from honed.model.device import copy_speed, matmul_speed, pick_device

    with warnings.catch_warnings(record=True) as said:  # torch warns about an old driver and continues without it
        warnings.simplefilter("always")
        device = pick_device()
    fault = _cuda_fault(torch, [str(warning.message) for warning in said])
    kinds = [torch.float32, torch.bfloat16] + ([torch.float16] if device.type == "cuda" else [])
    about: dict[str, Any] = {"name": _processor()}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        about = {"name": torch.cuda.get_device_name(device), "memory_gb": total / _GB, "memory_free_gb": free / _GB}
        about["has_bfloat16"] = torch.cuda.is_bf16_supported(including_emulation=False)
    speeds = {str(kind)[6:]: _measured(lambda kind=kind: matmul_speed(device, kind)) / 1e12 for kind in kinds}  # type: ignore[misc]
    return Device(
        kind=device.type,
        threads=torch.get_num_threads(),
        cuda_fault=fault,
        tflops={kind: round(speed, 4) for kind, speed in speeds.items() if speed},
        copy_gb_per_second=round(_measured(lambda: copy_speed(device)) / _GB, 2),
        **about,
    )


def _processor() -> str:
    lines = _words("/proc/cpuinfo").splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _measured(speed: Callable[[], float]) -> float:
    """A measured speed; 0 if the device does not support it or lacks the memory to try."""
    try:
        return speed()
    except (RuntimeError, NotImplementedError, MemoryError):
        return 0.0


def _cuda_fault(torch: Any, said: list[str]) -> str:
    """Why an NVIDIA card is not used."""
    card = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if torch.cuda.is_available() or not card or os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return said[0].splitlines()[0] if said else f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no card"


def _default_model_fault(import_fault: str) -> str:
    if import_fault:
        return "not looked for"
    from honed.model.smollm2.smollm2 import converted_fault, converted_path

    return converted_fault(converted_path()) or ""


def _free_gb(path: Path) -> float | None:
    try:
        return round(shutil.disk_usage(path).free / _GB, 2)
    except OSError:
        return None


def _words(file: str) -> str:
    try:
        return Path(file).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
