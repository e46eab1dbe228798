"""Callbacks of SFTTrainer: the progress bar, the metrics file, and early stopping."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from honed.progress import Progress
from honed.quantities import counted
from honed.train.metrics import describe
from honed.train.options.config import SFTConfig
from honed.train.run_folder.metrics_file import append_line, drop_after

logger = logging.getLogger(__name__)


class TrainingProgress(TrainerCallback):
    """A progress bar with loss, learning rate and tokens per second; plain lines if the output is not a terminal."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._bar = Progress(desc="Training", total=state.max_steps, unit="step")
            self._bar.count = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.advance()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self._bar is None or not logs:
            return
        if "loss" in logs:
            self._bar.advance(0, note=describe(logs))
        elif any(key.endswith("_loss") and key != "train_loss" for key in logs):
            self._bar.write(f"step {state.global_step}: " + ", ".join(f"{k} {v:.4g}" for k, v in logs.items()))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self, *, finished: bool = True) -> None:
        """Closes the bar if it is open; `finished` is False if training was interrupted."""
        if self._bar is not None:
            self._bar.close(finished=finished)
            self._bar = None


class MetricsFile(TrainerCallback):
    """Appends every log entry to `metrics.jsonl`, flushed at once so that a killed run keeps what it logged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Empties the file; a resumed run drops only the lines after its checkpoint."""
        self._started = time.perf_counter()
        if state.is_world_process_zero:
            drop_after(self.path, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            append_line(self.path, state.global_step, time.perf_counter() - self._started, logs)


def early_stopping(args: SFTConfig) -> list[TrainerCallback]:
    """Returns the callback for `early_stopping_patience`, if it is set."""
    if args.early_stopping_patience is None:
        return []
    return [EarlyStopping(args.early_stopping_patience, args.early_stopping_threshold)]


class EarlyStopping(EarlyStoppingCallback):
    """transformers' callback, which additionally reports that it ends a run and keeps its count when resumed."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restores the count from the checkpoint; a new run starts at 0, whatever an earlier run left."""
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = 0
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step:
            self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]
            self._end(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Counts this evaluation, and ends the run once the patience is used up."""
        super().on_evaluate(args, state, control, metrics, **kwargs)
        if self._end(control) and state.is_world_process_zero:
            logger.warning(
                f"early stopping: training ends at step {state.global_step} of {state.max_steps}, because "
                f"{args.metric_for_best_model} has not become better than {state.best_metric:g} (step "
                f"{state.best_global_step}) in {counted(self.early_stopping_patience, 'evaluation')}."
            )

    def _end(self, control: Any) -> bool:
        control.should_training_stop |= self.early_stopping_patience_counter >= self.early_stopping_patience
        return bool(control.should_training_stop)
