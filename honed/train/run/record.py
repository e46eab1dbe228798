"""Writes `run.json`, the record of a run, and detects data files that change during it."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from honed import __version__
from honed.data.read.sources import files_of
from honed.model.load.load import resolve
from honed.quantities import counted
from honed.recipe import DataRecipe, Recipe
from honed.train.metrics import memory_gb
from honed.train.options.config import SFTConfig
from honed.train.run_folder.folder import RunFolder
from honed.train.run_folder.secrets import masked, masked_command, masked_yaml

Stamps = Mapping[str, Mapping[str, int]]


class RunRecord:
    """`run.json`: what ran, where, and for how long; written at the start and at the end."""

    def __init__(self, folder: RunFolder, recipe: Recipe, command: str, args: SFTConfig) -> None:
        self._folder, self._device, self._data = folder, args.device, recipe.data
        self.trainable_bytes = 0
        self._seconds: dict[str, float] = {}
        self._content: dict[str, Any] = {
            "status": "running",
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "honed_command": masked_command(command),
            "model": masked(recipe.model),
            "model_folder": resolve(recipe.model),
            "data_files": stamps(recipe.data),
            "versions": _versions(),
            "device": {"name": device_name(args.device), "type": args.device.type, "threads": torch.get_num_threads()},
        }
        folder.write_text("recipe.yaml", masked_yaml(recipe))
        folder.write_json("run.json", self._content)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds the time that the block takes to the time of the step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[step] = round(self._seconds.get(step, 0.0) + time.perf_counter() - start, 2)

    def model(self, model: Any) -> None:
        """Records the numbers of parameters."""
        parameters = list(model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        self.trainable_bytes = sum(p.numel() * p.element_size() for p in trained)
        self._content["parameters"] = sum(p.numel() for p in parameters)
        self._content["trainable_parameters"] = sum(p.numel() for p in trained)
        self._content["device"]["dtype"] = str(next(iter(parameters)).dtype).removeprefix("torch.")

    def changed_data(self) -> list[str]:
        """Returns the data files that have changed since the start, and records them in `run.json`."""
        self._content["data_changed"] = changed(self._content["data_files"], self._data)
        return list(self._content["data_changed"])

    def end(self, status: str) -> None:
        peak = round(memory_gb(self._device), 3)
        self._folder.write_json(
            "run.json", {**self._content, "status": status, "seconds": self._seconds, "peak_memory_gb": peak}
        )


_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers")


def _versions() -> dict[str, str]:
    """Package versions; honed's is read from its code, because a checkout that is not installed has no metadata."""
    return {"python": platform.python_version(), "honed": __version__, **{name: version(name) for name in _PACKAGES}}


def device_name(device: torch.device) -> str:
    """Returns the GPU's name, or the device type and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()} ({counted(torch.get_num_threads(), 'thread')})"


def stamps(data: DataRecipe) -> Stamps:
    """Returns each data file's size in bytes and modification time in ns, except for Hub data and missing files."""
    found = {}
    for path in _files(data):
        try:
            stat = path.stat()
        except OSError:
            continue
        found[str(path)] = {"bytes": stat.st_size, "written_ns": stat.st_mtime_ns}
    return found


def changed(before: Stamps, data: DataRecipe) -> list[str]:
    """Returns the files that have changed or no longer exist."""
    now = stamps(data)
    return [name for name, stamp in before.items() if now.get(name) != stamp]


def _files(data: DataRecipe) -> Iterator[Path]:
    named: list[Any] = [source.get("files") for source in data.sources] if data.sources else [list(data.files)]
    for names in [*named, data.held_out]:
        yield from files_of(names) or ()
