"""`honed demo`: trains once, then shows what it kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def demo(honed: Callable[..., Any], model_folder: Path, rows_file: Path, tmp_path: Path) -> Callable[..., Any]:
    """The demo's recipe for two steps on a tiny model, asking one question."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "why fox"}\n')
    data = f"data.files=['{str(rows_file).replace(chr(39), chr(39) * 2)}']"
    short = ("train.max_steps=2", f"samples.prompts={questions}", "samples.max_new_tokens=3")

    def call(*more: str) -> Any:
        return honed("demo", f"model={model_folder}", data, f"output={tmp_path / 'run'}", *short, *more)

    return call


def test_the_second_call_shows_the_first_ones_result(demo: Callable[..., Any], tmp_path: Path) -> None:
    first = demo()
    assert first.status == 0, first.err
    kept = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in (tmp_path / "run").iterdir()}
    second = demo()
    assert second.status == 0
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in (tmp_path / "run").iterdir()} == kept
    assert "--again" in second.out
    assert second.out.splitlines()[1:] == first.out[first.out.index("\nQ: why fox") :].splitlines()
    run_json = tmp_path / "run" / "run.json"
    assert demo("--again").status == 0
    assert run_json.stat().st_mtime_ns > kept[run_json][0]


def test_without_samples_there_is_nothing_to_compare(demo: Callable[..., Any]) -> None:
    no_samples = ("samples.prompts=null", "samples.form=null")
    assert demo(*no_samples).status == 0
    again = demo(*no_samples)
    assert again.status == 0
    assert "report.html" in again.out


def test_a_changed_demo_trains_again(demo: Callable[..., Any]) -> None:
    assert demo().status == 0
    assert "ran before" not in demo("learning_rate=0.125").out
