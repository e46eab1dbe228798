"""When SFTTrainer saves, and how it ends when asked to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from honed.train.ranks import Stopped, keep_on_sigterm


class SavesAndStops(TrainerCallback):
    """Decides when to save: at an epoch's end after its evaluation and log, and at once when asked to stop.

    transformers resumes a checkpoint of an epoch's last step with the next epoch, so one written too early would lose
    the evaluation and the log. A run that is asked to stop during an evaluation is saved at once, because its grace
    period may end before the evaluation does, and again afterwards.

    Args:
        go_on: restores the run's state from its checkpoint.
        stops: whether the run is asked to stop.
        save: writes a checkpoint of the current step.
        streams: whether rows are streamed, so that there are no epochs.
    """

    def __init__(
        self, go_on: Callable[[], None], stops: Callable[[], bool], save: Callable[[], None], *, streams: bool
    ) -> None:
        self._go_on, self._stops, self._save, self._streams = go_on, stops, save, streams
        self._due = self._stopping = self._safe = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first step."""
        self._due = self._stopping = self._safe = False
        self._go_on()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before each step.

        Raises:
            Stopped: the run was asked to stop, and was saved during its evaluation.
        """
        if self._stopping and self._safe:
            raise self._stopped(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each step, before its log, evaluation and checkpoint."""
        if self._streams:  # else transformers counts from the step that was resumed
            state.epoch = state.global_step / state.max_steps
        self._stopping = self._stops()
        self._due = self._at_epochs_end(state) and (control.should_save or self._stopping)
        self._safe = False
        control.should_save = self._stopping or (control.should_save and not self._due)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last step of an epoch, before its log, evaluation and checkpoint."""
        control.should_save = control.should_save or self._due
        self._due = False

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each batch of an evaluation that training started; the script's own evaluations are left alone."""
        if self._safe or not control.should_evaluate or not (self._stopping or self._stops()):
            return
        self._safe = self._stopping = True
        self._save()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each evaluation, before the checkpoint."""
        if not (self._stopping and self._safe):
            return
        control.should_save = True
        if args.save_strategy == "best":  # this step may not be saved otherwise
            self._save()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each checkpoint.

        Raises:
            Stopped: the run was asked to stop.
        """
        self._safe = True
        if not self._due and (self._stopping or self._stops()):
            raise self._stopped(state)

    def _stopped(self, state: Any) -> Stopped:
        return Stopped(f"Stopped at step {state.global_step} and saved; the same command resumes from there.")

    def _at_epochs_end(self, state: Any) -> bool:
        return not self._streams and float(state.epoch).is_integer()


def keep_workers(loader: Any) -> Any:
    """Makes the loader's workers ignore SIGTERM and Ctrl-C: the main process saves and then ends them."""
    inner = getattr(loader, "base_dataloader", loader)
    before = inner.worker_init_fn
    inner.worker_init_fn = _Keeping(before)
    return loader


@dataclass(frozen=True, slots=True)
class _Keeping:
    before: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        keep_on_sigterm(worker)
        if self.before is not None:
            self.before(worker)
