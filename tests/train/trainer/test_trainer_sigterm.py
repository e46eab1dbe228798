"""SIGTERM to a script with an SFTTrainer: a whole checkpoint, status 0, and the run goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import needs_fork
from sigterm_script import ROWS, STEPS, make_trainer
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from honed.train.run_folder import checkpoint
from honed.train.trainer.trainer import SFTTrainer

HERE = Path(__file__).resolve().parents[1]
GRACE = 30.0  # seconds that torchrun and Kubernetes give
BEST = {"save_strategy": "best", "metric_for_best_model": "eval_loss", "greater_is_better": True}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 1}


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class InStep(TrainerCallback):
    """Signals in the midst of step 3, between its two micro-batches, so many `times`."""

    def __init__(self, times: int = 1) -> None:
        self.times = times

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            for _ in range(self.times):
                sigterm()


class InSave(TrainerCallback, ExportableState):
    """Signals while step 3 is saved, with its weights written and its state not."""

    armed = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.armed = state.global_step == 3

    def state(self) -> dict[str, Any]:
        if self.armed:
            sigterm()
        return {"args": {}, "attributes": {}}


class InEvaluation(TrainerCallback):
    """Signals in the midst of an evaluation, at its batch of this number; with `killed`, the grace ends there too."""

    def __init__(self, batch: int = 3, *, killed: bool = False) -> None:
        self.batch, self.killed, self.batches = batch, killed, 0

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches += 1
        if self.batches == self.batch:
            sigterm()
        if self.batches == self.batch + 2 and self.killed:
            os.kill(os.getpid(), signal.SIGKILL)


class Counts(TrainerCallback):
    """The steps that were taken."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with self.file.open("a") as file:
            file.write(".")


# who signals, the settings, the step after which it stops
WHEN: dict[str, tuple[Callable[[], TrainerCallback], dict[str, Any], int]] = {
    "in a step": (InStep, {}, 3),
    "twice": (lambda: InStep(2), {}, 3),
    "in a step before an evaluation": (InStep, EVALUATED, 3),
    "in a save": (InSave, {"save_strategy": "steps", "save_steps": 3}, 3),
    "in an evaluation": (InEvaluation, EVALUATED, 3),
    "in the evaluation of an epoch": (InEvaluation, {**EVALUATED, "eval_strategy": "epoch"}, 4),
    "in one that wants no checkpoint": (lambda: InEvaluation(ROWS + 3), {**EVALUATED, **BEST}, 6),
    "in one that outlasts the grace": (lambda: InEvaluation(killed=True), EVALUATED, 3),
}


def losses(trainer: SFTTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def evaluations(trainer: SFTTrainer) -> list[float]:
    return [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]


def same_end(resumed: SFTTrainer, whole: SFTTrainer) -> bool:
    pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    return losses(resumed) == losses(whole) and len(losses(whole)) == STEPS and all(torch.equal(a, b) for a, b in pairs)


@needs_fork
@pytest.mark.parametrize("when", WHEN)
def test_wherever_it_comes(when: str, tmp_path: Path, forked: Callable[..., int]) -> None:
    """No step is taken after it, and the run that goes on has the bits of the one that was not stopped."""
    make, changes, last = WHEN[when]
    grace_ends = "outlasts" in when
    run, steps = tmp_path / "run", tmp_path / "steps"

    def script() -> None:
        try:
            make_trainer(str(run), make(), Counts(steps), **changes).train()
        except SystemExit as end:  # anything else is status 1
            assert end.code == 0
        else:
            raise AssertionError("it was not stopped")

    assert os.waitpid(forked(script), 0)[1] == (signal.SIGKILL if grace_ends else 0)
    assert len(steps.read_text()) == last
    assert checkpoint.latest_good(run) == (run / f"checkpoint-{last}", [])
    whole, resumed = (make_trainer(str(tmp_path / name), **changes) for name in ("whole", "run"))
    whole.train()
    resumed.train(resume_from_checkpoint="auto")
    assert same_end(resumed, whole)
    assert evaluations(resumed) == evaluations(whole)[1 if grace_ends else 0 :], "only the one that was killed is lost"


def test_a_script_from_outside(tmp_path: Path) -> None:
    """A process of its own, signalled twice: it ends with status 0 within the grace, and does not go on to its end."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "sigterm_script.py"), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and "in step 3\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate("\n", timeout=GRACE)
    assert process.returncode == 0 and "Traceback" not in said
    assert "Stopped at step 3 and saved" in said
    assert checkpoint.latest_good(tmp_path / "run") == (tmp_path / "run" / "checkpoint-3", [])
    assert not (tmp_path / "run" / "final").exists()
    whole, resumed = (make_trainer(str(tmp_path / name)) for name in ("whole", "run"))
    whole.train()
    resumed.train(resume_from_checkpoint="auto")
    assert same_end(resumed, whole)


def test_a_handler_of_the_script_stays(tmp_path: Path) -> None:
    """What the script does at SIGTERM is its own; afterwards the system's answer is back where there was none."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        trainer = make_trainer(str(tmp_path), InStep(), max_steps=4)
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM] and trainer.state.global_step == 4
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        make_trainer(str(tmp_path), max_steps=1).train()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with pytest.raises(SystemExit) as end:
            make_trainer(str(tmp_path), InStep(), max_steps=4).train()
        assert end.value.code == 0 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
