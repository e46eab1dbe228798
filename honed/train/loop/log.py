"""Logging of the plain loop: progress bar, `metrics.jsonl`, and trackers."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from honed.errors import RecipeError
from honed.progress import Progress
from honed.train.loop.config import LoopConfig
from honed.train.metrics import describe
from honed.train.run_folder.metrics_file import MetricsLines


class Tracker(Protocol):
    """Receives named numbers at a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers of a step."""

    def close(self) -> None:
        """Called after the last `log`."""


class Log:
    """One run's log.

    Attributes:
        lines: what this process logged, with `step`.
        notes: notes for the user.
    """

    def __init__(self, trackers: list[Tracker], bar: Progress | None) -> None:
        self.lines: list[dict[str, float]] = []
        self.notes: list[str] = []
        self._trackers, self._bar = trackers, bar

    def step(self) -> None:
        if self._bar is not None:
            self._bar.advance()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps a step's numbers, shows them next to the bar, and passes them to the trackers."""
        self.lines.append({"step": step, **values})
        for tracker in self._trackers:
            tracker.log(step, values)
        if self._bar is not None and "loss" in values:
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
    """Opens the log of a run that starts at `step`; silent on all ranks but the first.

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


def open_tracker(name: str, config: LoopConfig, folder: Path | None) -> Tracker:
    """Opens a tracker by name; its package is imported only now.

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

        given = os.environ.get("TENSORBOARD_LOGGING_DIR")  # as in transformers
        self._writer: Any = SummaryWriter(given or (None if folder is None else str(folder / "tensorboard")))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Module:
    """wandb, trackio and swanlab, which all have `init`, `log` and `finish`."""

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
