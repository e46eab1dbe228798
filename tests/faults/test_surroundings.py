"""Clocks that jump, terminals that are none, readers that go away, and systems that know ASCII only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle, pairwise
from pathlib import Path

import pytest
from fault_tools import ROOT, Shown, long, python

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
ROW = {"messages": [{"role": "user", "content": "为什么？"}, {"role": "assistant", "content": "因为“é”…"}]}
CHECK = ("-m", "honed", "data", "check")


@pytest.fixture
def chinese(tmp_path: Path) -> Path:
    file = tmp_path / "数据.jsonl"
    file.write_text((json.dumps(ROW, ensure_ascii=False) + "\n") * 3, encoding="utf-8")
    return file


def test_a_clock_that_jumps(train: Callable[..., Shown], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A year back or forth at every look; what honed measures comes from clocks that only go on."""

    now, source = time.time(), cycle((0.0, -3e7, 3e7))
    monkeypatch.setattr(time, "time", lambda: now + next(source))
    assert train().status == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines]
    assert len(seconds) > 2 and all(0 <= a <= b < 600 for a, b in pairwise(seconds))
    assert all(line["tokens_per_second"] > 0 for line in lines if "loss" in line)
    assert all(0 <= spent < 600 for spent in json.loads((run / "run.json").read_text())["seconds"].values())


def test_no_terminal_no_control_characters(train: Callable[..., Shown]) -> None:
    shown = train()
    assert shown.status == 0
    assert not {"\r", "\x1b", "\b"} & set(shown.out + shown.err)


def test_output_in_ascii_only(chinese: Path) -> None:
    shown = python(*CHECK, str(chinese), env=ASCII)
    assert "Traceback" not in shown.stderr, shown.stderr
    assert shown.returncode == 0
    assert "\\udce6\\udc95\\udcb0" in shown.stdout, "the bytes of the file's name, escaped"


def test_an_argument_that_ascii_cannot_hold(chinese: Path) -> None:
    shown = python("-m", "honed", "train", "--data", str(chinese), env=ASCII)
    assert shown.returncode == 2
    assert "not text in this system's encoding (ascii)" in shown.stderr and "PYTHONUTF8=1" in shown.stderr


@long
def test_training_in_ascii_only(chinese: Path, arguments: list[str], run: Path) -> None:
    rows = chinese.rename(chinese.with_name("chinese.jsonl"))
    shown = python("-m", "honed", *arguments, "--data", str(rows), env=ASCII)
    assert shown.returncode == 0, shown.stderr
    assert json.loads((run / "ledger.json").read_text(encoding="utf-8"))["rows_trained"] == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells of a closed pipe in another way")
@pytest.mark.parametrize("command", [["--help"], ["cache"], ["data", "check"]])
@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_is_gone(command: list[str], both: bool, chinese: Path) -> None:
    more = [str(chinese)] if command[0] == "data" else []
    read, write = os.pipe()
    os.close(read)
    err = write if both else subprocess.PIPE
    shown = python("-m", "honed", *command, *more, capture_output=False, stdout=write, stderr=err)
    os.close(write)
    assert shown.returncode == 0
    assert not {"Traceback", "Exception", "BrokenPipeError:"} & set((shown.stderr or "").split())


def test_no_standard_output_at_all(chinese: Path) -> None:
    """As under a service manager that closes all of them."""
    code = "import sys; sys.stdout = sys.stderr = None; from honed.cli.main import main; sys.exit(main(sys.argv[1:]))"
    assert python("-c", code, "data", "check", str(chinese)).returncode == 0


@long
def test_two_runs_in_one_folder(arguments: list[str], run: Path) -> None:
    command = [sys.executable, "-m", "honed", *arguments, "max_steps=100000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as first:
        while not (run / "run.json").exists():
            assert first.poll() is None
            time.sleep(0.1)
        second = python("-m", "honed", *arguments)
        assert second.returncode == 2
        assert f"process {first.pid} on" in second.stderr
        first.kill()
    third = python("-m", "honed", *arguments)
    assert third.returncode == 0, third.stderr
    assert f"process {first.pid} on" in third.stdout and "was killed" in third.stdout
