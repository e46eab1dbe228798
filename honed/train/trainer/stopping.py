"""How SFTTrainer ends when SIGTERM or Ctrl-C asks it to stop, and when it saves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from honed.train.ranks import Stopped, until_ctrl_c, until_sigterm
from honed.train.trainer.resuming import ResumingTrainer

_HOW_TO_RESUME = "A script does with train(resume_from_checkpoint='auto')."


class StoppingTrainer(ResumingTrainer):
    """The layer of `SFTTrainer` that finishes and saves the step when SIGTERM or Ctrl-C asks it to stop.

    Attributes:
        asked_to_stop: when set, training saves after the next step and raises `Stopped`. None: `train` handles SIGTERM
            itself, unless the script has its own handler.
    """

    asked_to_stop: threading.Event | None = None
    _ctrl_c: threading.Event | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains; see `transformers.Trainer.train`.

        Raises:
            Stopped: training was asked to stop, and has saved a checkpoint.
            SystemExit: with status 0, after SIGTERM in a script that does not handle it; a checkpoint is saved.
            KeyboardInterrupt: Ctrl-C; the first one is raised after the step is finished and saved.
        """
        with self._ends_on_sigterm(), self._saves_on_ctrl_c():
            return super().train(*args, **kwargs)

    @contextmanager
    def _ends_on_sigterm(self) -> Iterator[None]:
        """Saves a checkpoint before SIGTERM ends the process, unless the script has its own handler."""
        if self.asked_to_stop is not None or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            yield
            return
        try:
            with until_sigterm() as self.asked_to_stop:
                yield
        except Stopped as stopped:
            self._say(f"{stopped} {_HOW_TO_RESUME}")
            raise SystemExit(0) from None
        finally:
            self.asked_to_stop = None

    @contextmanager
    def _saves_on_ctrl_c(self) -> Iterator[None]:
        """If checkpoints are enabled and steps would be lost, the first Ctrl-C saves before it interrupts.

        Raises:
            KeyboardInterrupt: Ctrl-C, even if it was pressed after the last step.
        """
        if self.args.save_strategy == "no":
            yield
            return
        try:
            with until_ctrl_c(self._saves_first) as self._ctrl_c:
                yield
                if self._ctrl_c.is_set():
                    raise KeyboardInterrupt
        except Stopped as stopped:
            if self.asked_to_stop is not None and not (self._ctrl_c and self._ctrl_c.is_set()):
                raise
            raise KeyboardInterrupt(f"{stopped} {_HOW_TO_RESUME}") from None
        finally:
            self._ctrl_c = self._first_step = None

    def _saves_first(self) -> bool:
        """Called by the Ctrl-C handler: whether steps were taken that must be saved before training ends."""
        if self._first_step is None or self.state.global_step == self._first_step:
            return False
        self._say("The run is saved at the end of this step. Ctrl-C again stops it at once.")
        return True

    def _is_asked_to_stop(self) -> bool:
        """Whether any rank was asked to stop."""
        events = [event for event in (self.asked_to_stop, self._ctrl_c) if event is not None]
        asked = any(event.is_set() for event in events)
        if not events or self.args.world_size == 1:
            return asked
        mine = torch.tensor([int(asked)], device=self.args.device)
        return bool(self.accelerator.gather(mine).any())


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
