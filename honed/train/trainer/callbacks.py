"""What happens beside training: the progress bar and the metrics file."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from honed.progress import Progress
from honed.train.loop.log import MetricsLines


class TrainingProgress(TrainerCallback):
    """A bar over the optimizer steps with loss, learning rate and tokens per second; plain lines in a pipe."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the bar, on the first rank only."""
        if state.is_world_process_zero:
            self._bar = Progress(desc="Training", total=state.max_steps, unit="step")
            self._bar.count = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step further."""
        if self._bar is not None:
            self._bar.advance()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Shows the newest numbers behind the bar."""
        if self._bar is None or not logs:
            return
        if "loss" in logs:
            self._bar.advance(0, note=describe(logs))
        elif any(key.endswith("_loss") and key != "train_loss" for key in logs):
            self._bar.write(f"step {state.global_step}: " + ", ".join(f"{k} {v:.4g}" for k, v in logs.items()))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the bar."""
        self.close()

    def close(self, *, finished: bool = True) -> None:
        """Closes the bar, if it is open; `finished` is False when training broke off."""
        if self._bar is not None:
            self._bar.close(finished=finished)
            self._bar = None


class MetricsFile(TrainerCallback):
    """Appends every logged line to `metrics.jsonl`, flushed at once so that a killed run keeps what it logged.

    Args:
        path: the file; a run that starts anew begins it anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Empties the file; of a run that is resumed, only what comes after its checkpoint is dropped."""
        self._started = time.perf_counter()
        if state.is_world_process_zero:
            MetricsLines(self.path, step=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """One JSON object a line; numbers that JSON cannot hold (NaN, infinity) become null."""
        if not state.is_world_process_zero or not logs:
            return
        seconds = round(time.perf_counter() - self._started, 3)
        line = {"step": state.global_step, "seconds": seconds, **{key: _finite(value) for key, value in logs.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def describe(logs: dict[str, float]) -> str:
    """'loss 0.512  lr 1.8e-03  612 tok/s (301 trained)'."""
    parts = [f"loss {logs['loss']:.4f}"]
    if "learning_rate" in logs:
        parts.append(f"lr {logs['learning_rate']:.1e}")
    if "tokens_per_second" in logs:
        trained = logs.get("trained_tokens_per_second")
        of_them = "" if trained is None else f" ({trained:.0f} trained)"
        parts.append(f"{logs['tokens_per_second']:.0f} tok/s{of_them}")
    return "  ".join(parts)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
