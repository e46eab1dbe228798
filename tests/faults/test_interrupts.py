"""Ctrl-C at each stage of a run: status 130, no traceback, nothing half written, and the same command starts again."""

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
    "loading": "honed.train.run.run.load_model",
    "preparing": "honed.train.run.run.run_data",
    "making the trainer": "honed.train.run.run.make_trainer",
    "training": "transformers.Trainer.training_step",
    "writing a checkpoint": "transformers.Trainer._save_optimizer_and_scheduler",
    "saving": "transformers.Trainer.save_model",
    "saving, the weights are there": "transformers.GenerationConfig.save_pretrained",
}


def press(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Ctrl-C as soon as the function is called."""
    owner, _, name = target.rpartition(".")
    module, _, kind = owner.rpartition(".")
    holder = sys.modules.get(owner) or getattr(__import__(module, fromlist=[kind]), kind)
    real = getattr(holder, name)

    def pressed(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(holder, name, real)  # once
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
