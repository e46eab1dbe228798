"""What the plain loop tells, and whom."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from honed.errors import RecipeError
from honed.train.loop.config import LoopConfig
from honed.train.loop.log import opened_log
from honed.train.run_folder.metrics_file import MetricsLines

OPENING: dict[str, Any] = {"step": 0, "total": 9, "first": True, "bar": False}


@pytest.mark.parametrize(("name", "run_key"), [("wandb", "name"), ("trackio", "name"), ("swanlab", "experiment_name")])
def test_trackers_get_the_settings_and_every_line(name: str, run_key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    module: Any = ModuleType(name)
    module.init = lambda **given: calls.append(given)
    module.log = lambda values, step: calls.append((step, values))
    module.finish = lambda: calls.append("finish")
    monkeypatch.setitem(sys.modules, name, module)
    config = LoopConfig(trackers=(name,), project="foxes", run_name="first", learning_rate=0.5)
    with opened_log(config, None, **OPENING) as log:
        log.write(3, {"loss": 1.5})
    init, line, end = calls
    assert init["project"] == "foxes" and init[run_key] == "first" and init["config"]["learning_rate"] == 0.5
    assert (line, end) == ((3, {"loss": 1.5}), "finish")
    with opened_log(config, None, **{**OPENING, "first": False}) as log:
        log.write(3, {"loss": 1.5})
    assert len(calls) == 3, "other ranks tell nobody"


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("wandb", "pip install wandb"),
        ("tensorboard", "pip install tensorboard"),
        ("bored", "set tensorboard, wandb, trackio, swanlab"),
    ],
)
def test_a_tracker_that_is_not_there_is_refused(name: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RecipeError, match=fix), opened_log(LoopConfig(trackers=(name,)), None, **OPENING):
        pass


def test_tensorboard_gets_the_folder_and_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Writer:
        def __init__(self, folder: str | None) -> None:
            calls.append(folder)

        def __getattr__(self, name: str) -> Any:
            return lambda *given: calls.append((name, *given))

    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    with opened_log(LoopConfig(trackers=("tensorboard",)), tmp_path, **OPENING) as log:
        log.write(3, {"loss": 1.5, "grad_norm": 2.0})
    scalars = [("add_scalar", "loss", 1.5, 3), ("add_scalar", "grad_norm", 2.0, 3)]
    assert calls == [str(tmp_path / "tensorboard"), *scalars, ("flush",), ("close",)]


def test_tensorboard_gets_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with opened_log(LoopConfig(trackers=("tensorboard",)), tmp_path, **OPENING) as log:
        log.write(1, {"loss": 2.0})
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_metrics_lines_are_json_whatever_the_numbers(tmp_path: Path) -> None:
    lines = MetricsLines(tmp_path / "new" / "metrics.jsonl", step=0)
    lines.log(1, {"loss": math.nan, "grad_norm": 2.0})
    [line] = [json.loads(text) for text in (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()]
    assert (line["step"], line["loss"], line["grad_norm"]) == (1, None, 2.0) and line["seconds"] >= 0


def test_a_resumed_run_drops_the_lines_behind_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    MetricsLines(path, step=2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    MetricsLines(path, step=0)
    assert path.read_text() == ""


def test_the_bar_shows_steps_losses_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    with opened_log(LoopConfig(), None, **{**OPENING, "bar": True, "total": 2}) as log:
        for step in (1, 2):
            log.step()
            log.write(step, {"loss": 0.5, "learning_rate": 0.1})
        log.write(2, {"eval_loss": 0.25})
        log.note("something is so")
    shown = capsys.readouterr().err
    assert "Training: 2/2 step" in shown and "loss 0.5000" in shown
    assert "step 2: eval_loss 0.25" in shown and "note: something is so" in shown
    assert log.notes == ["something is so"] and log.lines[-1] == {"step": 2, "eval_loss": 0.25}
