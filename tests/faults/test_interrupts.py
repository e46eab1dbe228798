"""Ctrl-C at each stage of a run: status 130, no traceback, nothing half written, and the same command starts again.

While the run trains, the first one saves it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_tools import ROOT, Shown, long
from safetensors.torch import load_file

STAGES = {
    "loading": "honed.train.run.start.load_model",
    "preparing": "honed.train.run.start.run_data",
    "making the trainer": "honed.train.run.run.make_trainer",
    "saving, the weights are there": "transformers.GenerationConfig.save_pretrained",
}
WHILE_TRAINING = {
    "training": "transformers.Trainer.training_step",
    "writing a checkpoint's weights": "transformers.Trainer.save_model",
    "writing a checkpoint's states": "transformers.Trainer._save_optimizer_and_scheduler",
    "in the plain loop": "honed.train.loop.loop.train_step",
}


def press(monkeypatch: pytest.MonkeyPatch, target: str, *, times: int = 1) -> None:
    """Ctrl-C as soon as the function is called."""
    owner, _, name = target.rpartition(".")
    module, _, kind = owner.rpartition(".")
    holder = sys.modules.get(owner) or getattr(__import__(module, fromlist=[kind]), kind)
    real = getattr(holder, name)

    def pressed(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(holder, name, real)  # once
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(holder, name, pressed)


@pytest.mark.parametrize("stage", STAGES)
def test_at_every_stage(stage: str, train: Callable[..., Shown], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import honed.train.run.run  # noqa: F401 - holds what is replaced

    signal.signal(signal.SIGINT, signal.default_int_handler)
    press(monkeypatch, STAGES[stage])
    shown = train("save_strategy=steps", "save_steps=2")
    assert shown.status == 130
    assert "Traceback" not in shown.err and "starts again" in shown.err
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")], "something half done is left"
    assert not (run / "adapter_model.safetensors").exists()

    again = train("save_strategy=steps", "save_steps=2")
    assert again.status == 0, again.err
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert load_file(run / "adapter_model.safetensors")


@pytest.mark.parametrize("stage", WHILE_TRAINING)
def test_the_first_saves(stage: str, train: Callable[..., Shown], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that goes on has the steps and the losses of one that was never stopped."""
    import honed.train.run.run  # noqa: F401

    options = ["save_strategy=steps", "save_steps=2", *(["engine=plain"] if "plain" in stage else [])]
    whole = run.parent / "whole"
    assert train(*options, "--output", str(whole)).status == 0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    press(monkeypatch, WHILE_TRAINING[stage])
    shown = train(*options)
    assert shown.status == 130 and "resumes from there" in shown.out and "Traceback" not in shown.err, shown.err
    assert shown.err.count("the run is saved at the end of this step") == 1
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    again = train(*options)
    assert again.status == 0 and losses(run) == losses(whole) and len(losses(run)) > 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_stops_at_once(train: Callable[..., Shown], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import honed.train.run.run  # noqa: F401

    signal.signal(signal.SIGINT, signal.default_int_handler)
    press(monkeypatch, "transformers.Trainer.training_step", times=2)
    shown = train("save_strategy=steps", "save_steps=2")
    assert shown.status == 130 and "starts again" in shown.err and "resumes from there" not in shown.out
    assert not list(run.glob("checkpoint-*")) and train().status == 0


def losses(run: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_while_the_report_is_written(train: Callable[..., Shown], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import honed.train.run.run  # noqa: F401

    signal.signal(signal.SIGINT, signal.default_int_handler)
    press(monkeypatch, "honed.train.run.run.write_run_report")
    assert train().status == 130
    assert json.loads((run / "run.json").read_text())["status"] == "finished"  # the weights are there
    assert load_file(run / "adapter_model.safetensors")


@long
@pytest.mark.skipif(sys.platform == "win32", reason="there, a console sends Ctrl-C, and nobody else")
@pytest.mark.parametrize("seconds", [0.3, 1.5, 4.0, 8.0])
def test_from_outside_at_any_time(seconds: float, arguments: list[str], run: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "honed", *arguments, "max_steps=100000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    if seconds < 1 and process.returncode != 130:  # Python itself was still starting
        assert process.returncode in (-signal.SIGINT, 1)
        return
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not (run / ".lock").exists()
