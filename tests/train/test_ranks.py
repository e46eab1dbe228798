"""Processes that make batches leave signals to the one that trains, and yet end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from honed.train import ranks

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, signal
from torch.utils.data import DataLoader
from honed.train.ranks import keep_on_sigterm

batches = iter(DataLoader([0] * 64, num_workers=1, worker_init_fn=keep_on_sigterm))
next(batches)
for worker in batches._workers:
    os.kill(worker.pid, signal.SIGTERM)
    os.kill(worker.pid, signal.SIGINT)
print(sum(map(len, batches)), flush=True)
batches = iter(DataLoader([0] * 64, num_workers=1, worker_init_fn=keep_on_sigterm))
next(batches)
raise ValueError("of the script")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there, no signal comes to a group")
def test_processes_that_make_batches_outlive_signals_but_not_the_script() -> None:
    """The error of a script keeps its batches alive until Python ends, which then must not wait for ever."""
    shown = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert shown.stdout == "63\n"
    assert shown.returncode == 1 and shown.stderr.splitlines()[-1] == "ValueError: of the script"


@pytest.mark.skipif(sys.platform == "win32", reason="there, no signal comes to a group")
def test_nor_do_they_outlive_a_loader_that_nobody_holds(
    forked: Callable[[Callable[[], None]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch ends their processes by SIGTERM then."""
    monkeypatch.setattr(ranks, "_OUTLASTS", 1)
    ready, told = os.pipe()

    def work() -> None:
        ranks.keep_on_sigterm(0)
        os.write(told, b"x")
        time.sleep(60)

    worker = forked(work)
    os.read(ready, 1)
    os.kill(worker, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGALRM


@pytest.mark.parametrize(("name", "index"), [("cuda", 3), ("cuda:1", 1)])
def test_the_device_that_trains_is_the_current_one(name: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a checkpoint would keep the random state of another GPU."""
    made_current: list[torch.device] = []
    monkeypatch.setattr(ranks, "named_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with ranks.joined(name) as here:
        assert here.device == torch.device("cuda", index)
    assert made_current == [here.device]
