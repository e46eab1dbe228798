"""A run that was stopped anywhere and goes on ends as if it had not been: the same bits."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import KILLS, keep_result, kill_until_done, needs_fork
from loop_program import make_model, make_rows, run_loop, trained
from safetensors.torch import load_file, save_file

from honed.data.batch.table import PackedRow
from honed.data.mix.mixture import Mixture, Part
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.errors import RunError
from honed.train.loop import loop
from honed.train.loop.config import LoopConfig
from honed.train.run_folder import checkpoint

CLOCKS = {"tokens_per_second", "trained_tokens_per_second", "memory_gb", "seconds"}
BASE: dict[str, Any] = {"batch_size": 2, "epochs": 3, "learning_rate": 0.01, "log_every": 1, "warmup": 2}
PACKED = {**BASE, "epochs": 5, "accumulation": 2, "save_every": 2}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"rows": 10, "settings": {**BASE, "save_every": 1}},
    "packed, accumulated": {"rows": 14, "packed": True, "settings": PACKED},
    "dropout": {"rows": 10, "lora": True, "settings": {**BASE, "save_every": 1, "weight_decay": 0.1}},
    "noise": {"rows": 10, "settings": {**BASE, "save_every": 3, "neftune_alpha": 5.0, "log_every": 2}},
    "float16": {"rows": 10, "settings": {**BASE, "save_every": 1, "dtype": "float16"}},
    "workers": {"rows": 10, "lora": True, "settings": {**BASE, "save_every": 1, "workers": 1}},
}


class Breaking:
    """Rows that break the run off when the n-th is trained, as a crash in the middle of a step would."""

    def __init__(self, rows: Any, at: int) -> None:
        self.rows, self.left = rows, len(rows) + at  # all are read once before, for the run's identity

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PackedRow:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.rows[index]


def without_clocks(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return without_clocks([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_run_ends_with_the_same_bits(way: str, tmp_path: Path) -> None:
    """It breaks in the midst of its first, fourth and ninth step, and each time a new model goes on."""
    job = {**WAYS[way], "out": str(tmp_path / "run")}
    _, model = run_loop({**job, "out": str(tmp_path / "whole")})
    config = LoopConfig(**job["settings"])
    alone = replace(config, workers=0)  # a crash in a worker would be another error
    rows = make_rows(job["rows"], packed=job.get("packed", False))
    done = 0
    for stop in (1, 4, 9):
        broken = make_model(lora=job.get("lora", False))
        at = (stop - done) * config.batch_size * config.accumulation - 1
        with pytest.raises(KeyboardInterrupt):
            loop.train(broken, Breaking(rows, at), alone, folder=tmp_path / "run")
        path, _ = checkpoint.latest_good(tmp_path / "run")
        done = 0 if path is None else int(path.name.split("-")[1])
    resumed, again = run_loop(job)
    assert any("resuming from" in note for note in resumed.notes) == (done > 0)
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")
    assert same(trained(again), trained(model))


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    job = {**WAYS["plain"], "out": str(tmp_path)}
    first, model = run_loop(job)
    again, same_model = run_loop(job)
    assert first.steps == again.steps and again.log == [] and same(trained(same_model), trained(model))


def test_a_torn_and_a_foreign_checkpoint_are_passed_over(tmp_path: Path) -> None:
    job = {**WAYS["plain"], "out": str(tmp_path / "run")}
    _, model = run_loop({**job, "out": str(tmp_path / "whole")})
    run_loop(job)
    weights = tmp_path / "run" / "checkpoint-15" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    other = {**job, "settings": {**job["settings"], "learning_rate": 0.5}}
    outcome, _ = run_loop({**other, "settings": {**other["settings"], "max_steps": 14, "save_every": 4, "keep": 1}})
    kept = {int(path.name[11:]) for path in (tmp_path / "run").glob("checkpoint-*")}
    assert kept == {*range(1, 16)} - {4, 8, 12}, "the others are not this run's to delete"
    assert outcome.steps == 14 and len(outcome.log) == 14, "it began anew"
    assert "weights.safetensors has" in outcome.notes[0]
    assert "learning_rate is 0.01 there, 0.5 here" in outcome.notes[1]
    resumed, again = run_loop(job)
    assert "max_steps is 14 there, None here" in " ".join(resumed.notes)
    assert same(trained(again), trained(model))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 12}, "data is"),
        ({"lora": True}, "adapter is"),
        ({"packed": True}, "data is"),
        ({"settings": {"seed": 1}}, "seed is 0 there, 1 here"),
        ({"settings": {"accumulation": 2}}, "accumulation is 1 there, 2 here"),
    ],
)
def test_what_makes_a_run_another(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    job = {**WAYS["plain"], "out": str(tmp_path)}
    short = {**job["settings"], "max_steps": 1}
    run_loop({**job, "settings": short})
    other = {**job, **change, "settings": {**short, **change.get("settings", {})}}
    with pytest.raises(RunError, match=f"another run's.*{words}"):
        run_loop({**other, "settings": {**other["settings"], "resume": str(tmp_path / "checkpoint-1")}})


@pytest.mark.parametrize(
    "changes", [{"log_every": 3}, {"save_every": 2, "keep": 1}, {"workers": 1}, {"token_metrics": False}]
)
def test_what_does_not_make_a_run_another(changes: dict[str, Any], tmp_path: Path) -> None:
    job = {**WAYS["dropout"], "out": str(tmp_path / "run")}
    _, model = run_loop({**job, "out": str(tmp_path / "whole")})
    rows = make_rows(job["rows"])
    with pytest.raises(KeyboardInterrupt):
        loop.train(make_model(lora=True), Breaking(rows, 15), LoopConfig(**job["settings"]), folder=tmp_path / "run")
    resumed, again = run_loop({**job, "settings": {**job["settings"], **changes}})
    assert "resuming from checkpoint-7" in resumed.notes and same(trained(again), trained(model))


def test_starting_anew_is_a_choice(tmp_path: Path) -> None:
    job = {**WAYS["plain"], "out": str(tmp_path)}
    run_loop(job)
    outcome, _ = run_loop({**job, "settings": {**job["settings"], "resume": None}})
    assert len(outcome.log) == outcome.steps == 15
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, 16))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    job = {**WAYS["plain"], "out": str(tmp_path)}
    run_loop({**job, "settings": {**job["settings"], "keep": 2}})
    assert {path.name for path in tmp_path.glob("*checkpoint*")} == {"checkpoint-14", "checkpoint-15"}


def test_a_full_disk_is_noted_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is lost, and the checkpoint from before is still whole."""
    job = {**WAYS["plain"], "out": str(tmp_path / "run")}
    _, model = run_loop({**job, "out": str(tmp_path / "whole")})
    real = torch.save

    def full_later(content: Any, place: Any) -> None:
        if (tmp_path / "run" / "checkpoint-4").exists():
            raise OSError(28, os.strerror(28))
        real(content, place)

    monkeypatch.setattr(torch, "save", full_later)
    outcome, again = run_loop(job)
    assert outcome.steps == 15 and len(outcome.notes) == 11
    assert "step 5 could not be saved; training continues. No space is left" in outcome.notes[0]
    assert checkpoint.latest_good(tmp_path / "run") == (tmp_path / "run" / "checkpoint-4", [])
    assert same(trained(again), trained(model))


class Signalled(Breaking):
    """Rows that send this process SIGTERM when the n-th is asked for."""

    def __getitem__(self, index: int) -> PackedRow:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.rows[index]


def test_sigterm_saves_and_ends_well(tmp_path: Path) -> None:
    job = {
        **WAYS["dropout"],
        "out": str(tmp_path / "run"),
        "settings": {**WAYS["dropout"]["settings"], "save_every": 0},
    }
    expected, model = run_loop({**job, "out": str(tmp_path / "whole")})
    before = signal.getsignal(signal.SIGTERM)
    outcome = loop.train(
        make_model(lora=True), Signalled(make_rows(10), 7), LoopConfig(**job["settings"]), folder=tmp_path / "run"
    )
    assert signal.getsignal(signal.SIGTERM) is before
    assert outcome.stopped and outcome.steps == 4 and not expected.stopped
    assert [path.name for path in tmp_path.glob("run/checkpoint*")] == ["checkpoint-4"]
    resumed, again = run_loop(job)
    assert not resumed.stopped and resumed.steps == 15 and len(resumed.log) == 11
    assert same(trained(again), trained(model))


@needs_fork
def test_killed_at_random_it_still_ends_with_the_same_bits(
    tmp_path: Path, tiny_tokenizer: Any, chat_rows: list[dict[str, Any]], forked: Callable[..., int]
) -> None:
    """Two weighted sources, packed rows, accumulation, LoRA, noise and dropout; killed in steps and in saves."""
    parts = (Part(data=chat_rows[:7], name="one", weight=2.0), Part(data=chat_rows[7:], name="other", weight=1.0))
    options = PrepareOptions(packing=True, max_length=32)
    rows = prepare(Mixture(parts=parts, seed=3), tiny_tokenizer, options).rows
    config = LoopConfig(
        **{**BASE, "epochs": 1, "max_steps": 10 * (KILLS + 1), "save_every": 1, "keep": 2},
        accumulation=2, neftune_alpha=5.0, weight_decay=0.1,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"

    def train_in(folder: Path) -> Any:
        model = make_model(lora=True, vocab_size=400)
        loop.train(model, rows, config, folder=folder)
        return trained(model)

    def reached(kill: int) -> bool:
        return metrics.exists() and metrics.read_bytes().count(b"\n") >= 10 * kill + 2 + kill * 7 % 8

    def work() -> None:
        save_file(train_in(tmp_path / "run"), tmp_path / "weights.safetensors")

    struck = kill_until_done(forked, work, tmp_path / "run", reached)
    assert struck.kills == KILLS and struck.in_saves
    weights = train_in(tmp_path / "whole")
    lines = lines_of(tmp_path / "run")
    assert lines == lines_of(tmp_path / "whole") and len(lines) == config.max_steps
    assert same(load_file(tmp_path / "weights.safetensors"), weights)
    assert not list((tmp_path / "run").glob(".checkpoint-part-*"))
    keep_result("plain", "packed", **asdict(struck), steps=config.max_steps, tensors_that_differ=0)
