"""The metrics file and the progress of training in a pipe."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from honed.train.metrics import describe
from honed.train.trainer.callbacks import MetricsFile, TrainingProgress

LOGS = {"loss": 0.5, "learning_rate": 2e-4, "tokens_per_second": 612.4, "trained_tokens_per_second": 301.0}


def state(step: int = 0, *, first_rank: bool = True) -> Any:
    return SimpleNamespace(is_world_process_zero=first_rank, global_step=step, max_steps=3)


def strict(line: str) -> dict[str, Any]:
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return dict(json.loads(line, parse_constant=refuse))


@pytest.fixture
def metrics(tmp_path: Path) -> MetricsFile:
    return MetricsFile(tmp_path / "metrics.jsonl")


def lines(metrics: MetricsFile) -> list[dict[str, Any]]:
    return [strict(line) for line in metrics.path.read_text(encoding="utf-8").splitlines()]


def test_every_log_is_a_line(metrics: MetricsFile) -> None:
    metrics.on_train_begin(None, state(), None)
    metrics.on_log(None, state(1), None, logs=LOGS)
    metrics.on_log(None, state(2), None, logs={"eval_loss": 1.5})
    metrics.on_log(None, state(2), None, logs={})
    found = lines(metrics)
    assert [line.pop("seconds") >= 0 for line in found] == [True, True]
    assert found == [{"step": 1, **LOGS}, {"step": 2, "eval_loss": 1.5}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_is_null(value: float, metrics: MetricsFile) -> None:
    metrics.on_log(None, state(1), None, logs={"loss": value, "grad_norm": 1.0})
    assert lines(metrics)[0]["loss"] is None
    assert lines(metrics)[0]["grad_norm"] == 1.0


@pytest.mark.parametrize(("step", "kept"), [(0, []), (4, [1])])
def test_a_new_run_starts_anew_and_a_resumed_one_goes_on(step: int, kept: list[int], metrics: MetricsFile) -> None:
    metrics.on_log(None, state(1), None, logs=LOGS)
    metrics.on_train_begin(None, state(step), None)
    metrics.on_log(None, state(5), None, logs=LOGS)
    assert [line["step"] for line in lines(metrics)] == [*kept, 5]


def test_other_ranks_write_nothing(metrics: MetricsFile) -> None:
    metrics.on_train_begin(None, state(first_rank=False), None)
    metrics.on_log(None, state(1, first_rank=False), None, logs=LOGS)
    assert not metrics.path.exists()


def run_bar(*, first_rank: bool = True, start: int = 0) -> None:
    bar = TrainingProgress()
    bar.on_train_begin(None, state(start, first_rank=first_rank), None)
    for step in range(start + 1, 4):
        bar.on_step_end(None, state(step), None)
        bar.on_log(None, state(step), None, logs=LOGS)
    bar.on_log(None, state(3), None, logs={"eval_loss": 1.25, "epoch": 1.0})
    bar.on_log(None, state(3), None, logs={"train_loss": 0.5})
    bar.on_train_end(None, state(3), None)
    bar.on_train_end(None, state(3), None)


@pytest.mark.parametrize("start", [0, 2])
def test_progress_in_a_pipe_is_plain_lines(start: int, capsys: pytest.CaptureFixture[str]) -> None:
    run_bar(start=start)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "step 3: eval_loss 1.25, epoch 1",
        "Training: 3/3 steps in 0:00  loss 0.5000  lr 2.0e-04  612 tok/s (301 trained)",
    ]
    assert "\r" not in shown.err


def test_each_line_says_which_step_its_loss_is_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers ends a step before it logs it. The last line is written once."""
    monkeypatch.setattr("honed.progress.SECONDS_BETWEEN_LINES", 0.0)
    bar = TrainingProgress()
    bar.on_train_begin(None, state(), None)
    for step in (1, 2, 3):
        bar.on_step_end(None, state(step), None)
        bar.on_log(None, state(step), None, logs={"loss": step / 2})
    bar.on_train_end(None, state(3), None)
    shown = [line.partition("  ") for line in capsys.readouterr().err.splitlines()]
    assert [(line[10:13], note) for line, _, note in shown] == [
        ("1/3", ""),
        ("1/3", "loss 0.5000"),
        ("2/3", "loss 0.5000 (step 1)"),
        ("2/3", "loss 1.0000"),
        ("3/3", "loss 1.5000"),
    ]


def test_progress_is_the_first_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    run_bar(first_rank=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        (LOGS, "loss 0.5000  lr 2.0e-04  612 tok/s (301 trained)"),
        ({"loss": 0.5}, "loss 0.5000"),
        ({"loss": math.nan, "learning_rate": 0.0}, "loss nan  lr 0.0e+00"),
    ],
)
def test_describe(logs: dict[str, float], expected: str) -> None:
    assert describe(logs) == expected
