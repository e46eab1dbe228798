"""Ctrl-C in a script with an SFTTrainer: no step is lost, and it interrupts all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sigterm_script import STEPS, make_trainer
from transformers import TrainerCallback

from honed.train.run_folder import checkpoint

HERE = Path(__file__).resolve().parents[1]
SAVES = {"save_strategy": "steps", "save_steps": 100}
EVALUATES = {**SAVES, "eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 1}


@pytest.fixture(autouse=True)
def pythons_own() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Presses(TrainerCallback):
    """Presses Ctrl-C so many `times` at an event of the Trainer, once this number of steps is done."""

    def __init__(self, event: str, after: int = 2, times: int = 1) -> None:
        self.after, self.times = after, times
        setattr(self, event, self.press)

    def press(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            for _ in range(self.times):
                self.times = 0
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("event", "after", "changes", "last"),
    [
        ("on_substep_end", 2, SAVES, 3),
        ("on_step_end", 2, SAVES, 2),
        ("on_save", 3, {**SAVES, "save_steps": 3}, 3),
        ("on_prediction_step", 3, EVALUATES, 3),
        ("on_substep_end", 2, {**SAVES, "dataloader_num_workers": 1}, 3),
    ],
)
def test_the_first_saves_and_interrupts(
    event: str, after: int, changes: dict[str, Any], last: int, tmp_path: Path
) -> None:
    """The run that goes on ends with the bits of one that was not interrupted."""
    script = make_trainer(str(tmp_path / "run"), Presses(event, after), **changes)
    told: list[str] = []
    script.tell = told.append
    with pytest.raises(KeyboardInterrupt, match=f"Stopped at step {last} and saved.*train\\(resume_from_checkpoint="):
        script.train()
    assert len(told) == 1 and "again stops it at once" in told[0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert checkpoint.latest_good(tmp_path / "run") == (tmp_path / "run" / f"checkpoint-{last}", [])
    whole, resumed = (make_trainer(str(tmp_path / name), **changes) for name in ("whole", "run"))
    whole.train()
    resumed.train(resume_from_checkpoint="auto")
    pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    assert resumed.state.global_step == STEPS and all(torch.equal(mine, its) for mine, its in pairs)


@pytest.mark.parametrize(
    ("event", "after", "times", "changes"),
    [
        ("on_substep_end", 2, 2, SAVES),
        ("on_substep_end", 0, 1, SAVES),
        ("on_train_begin", 0, 1, SAVES),
        ("on_substep_end", 2, 1, {}),
    ],
    ids=["the second", "nothing done yet", "before the first step", "no checkpoints wanted"],
)
def test_at_once(event: str, after: int, times: int, changes: dict[str, Any], tmp_path: Path) -> None:
    trainer = make_trainer(str(tmp_path), Presses(event, after, times), **changes)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == after and not list(tmp_path.glob("checkpoint-*"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_after_the_last_step_it_interrupts_too(tmp_path: Path) -> None:
    trainer = make_trainer(str(tmp_path), Presses("on_train_end", STEPS), **SAVES)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert checkpoint.latest_good(tmp_path)[0] == tmp_path / f"checkpoint-{STEPS}"


def test_a_handler_of_the_script_stays(tmp_path: Path) -> None:
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    trainer = make_trainer(str(tmp_path), Presses("on_substep_end"), **SAVES)
    trainer.train()
    assert came == [signal.SIGINT] and trainer.state.global_step == STEPS


def test_a_script_whose_sigterm_is_its_own(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt, match="Stopped at step 3 and saved"):
            make_trainer(str(tmp_path), Presses("on_substep_end"), **SAVES).train()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(sys.platform == "win32", reason="there, a console sends Ctrl-C, and nobody else")
def test_to_a_group_of_processes(tmp_path: Path) -> None:
    """A terminal sends it to those that make the batches as well, also to an evaluation's."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and "evaluating\n" in iter(process.stdout.readline, "")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate("\n", timeout=60)
    assert process.returncode in (130, -signal.SIGINT), said
    assert said.splitlines()[-1].startswith("KeyboardInterrupt: Stopped at step 3 and saved")
    assert checkpoint.latest_good(tmp_path)[0] == tmp_path / "checkpoint-3"


_SCRIPT = """
import sys
from transformers import TrainerCallback
from sigterm_script import make_trainer

class Waits(TrainerCallback):
    done = False
    def on_prediction_step(self, *args, **kwargs):
        if not self.done:
            self.done = True
            print("evaluating", flush=True)
            sys.stdin.readline()

make_trainer(
    sys.argv[1], Waits(), save_strategy="steps", eval_strategy="steps", eval_steps=3, dataloader_num_workers=1,
    per_device_eval_batch_size=1,
).train()
"""
