"""Where the plain loop tells what it does: the bar, `metrics.jsonl`, and trackers by name."""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from honed.errors import RecipeError, storage_errors
from honed.progress import Progress
from honed.train.loop.config import LoopConfig


class Tracker(Protocol):
    """Takes numbers by name at a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line of numbers."""

    def close(self) -> None:
        """After the last line."""


class Log:
    """One run's log.

    Attributes:
        lines: what was logged in this process, with `step`.
        notes: what the user should know.
    """

    def __init__(self, trackers: list[Tracker], bar: Progress | None) -> None:
        self.lines: list[dict[str, float]] = []
        self.notes: list[str] = []
        self._trackers, self._bar = trackers, bar

    def step(self) -> None:
        """One optimizer step further."""
        if self._bar is not None:
            self._bar.advance()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step: kept, shown behind the bar, and given to the trackers."""
        self.lines.append({"step": step, **values})
        for tracker in self._trackers:
            tracker.log(step, values)
        if self._bar is not None and "loss" in values:
            from honed.train.trainer.callbacks import (
                describe,  # brings transformers' callbacks along, so only for a bar
            )

            self._bar.advance(0, note=describe(dict(values)))
        elif self._bar is not None:
            self._bar.write(f"step {step}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))

    def note(self, *texts: str) -> None:
        """Keeps notes and shows them at once."""
        self.notes += texts
        if self._bar is not None:
            for text in texts:
                self._bar.write(f"note: {text}")


@contextmanager
def opened_log(
    config: LoopConfig, folder: Path | None, *, step: int, total: int, first: bool, bar: bool
) -> Iterator[Log]:
    """The log of a run from `step` on; silent where this rank is not the first.

    Raises:
        RecipeError: a tracker is unknown, or its package is not installed.
    """
    if not first:
        yield Log([], None)
        return
    trackers: list[Tracker] = [] if folder is None else [MetricsLines(folder / "metrics.jsonl", step=step)]
    progress = None
    try:
        trackers += [open_tracker(name, config, folder) for name in config.trackers]
        if bar:
            progress = Progress(desc="Training", total=total, unit="step")
            progress.count = step
        yield Log(trackers, progress)
    finally:
        if progress is not None:
            progress.close()
        for tracker in trackers:
            tracker.close()


class MetricsLines:
    """Appends a JSON object a line, flushed at once; where a run is resumed, lines behind its step are dropped."""

    def __init__(self, path: Path, *, step: int) -> None:
        self._path, self._started = path, time.perf_counter()
        drop_after(path, step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that JSON cannot hold (NaN, infinity) become null."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        line = {"step": step, "seconds": round(time.perf_counter() - self._started, 3), **finite}
        with storage_errors(self._path.parent), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


def drop_after(path: Path, step: int) -> None:
    """Drops the lines behind a step from a file of JSON lines, which is made where there is none; all, if it is 0."""
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text(encoding="utf-8").splitlines() if step and path.exists() else []
        beside = path.with_name(f".{path.name}.{os.getpid()}")  # renamed: a kill must not leave half of the lines
        beside.write_text("".join(f"{line}\n" for line in old if _step_of(line) <= step), encoding="utf-8")
        beside.replace(path)


def open_tracker(name: str, config: LoopConfig, folder: Path | None) -> Tracker:
    """A tracker by its name; its package is imported only now.

    Raises:
        RecipeError: the name is unknown, or the package is not installed.
    """
    if name != "tensorboard" and name not in _NAMES_RUNS:
        raise RecipeError(f"There is no tracker {name!r}.", fix=f"set tensorboard, {', '.join(_NAMES_RUNS)}")
    try:
        return _TensorBoard(folder) if name == "tensorboard" else _Module(name, config)
    except ImportError:
        raise RecipeError(f"The tracker {name!r} is not installed.", fix=f"pip install {name}") from None


class _TensorBoard:
    def __init__(self, folder: Path | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        given = os.environ.get("TENSORBOARD_LOGGING_DIR")  # as transformers reads it
        self._writer: Any = SummaryWriter(given or (None if folder is None else str(folder / "tensorboard")))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Module:
    """wandb, trackio and swanlab: `init` once, `log` numbers at a step, `finish`."""

    def __init__(self, name: str, config: LoopConfig) -> None:
        self._module = importlib.import_module(name)
        names = {"project": config.project or "honed", _NAMES_RUNS[name]: config.run_name}
        given = {key: value for key, value in names.items() if value is not None}
        self._module.init(config=asdict(config), **given)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        self._module.finish()


_NAMES_RUNS = {"wandb": "name", "trackio": "name", "swanlab": "experiment_name"}


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # the line that a kill tore
