"""Real processes and a real kill -9, wherever it strikes. It is no test itself.

Two kills in a test, or three; HONED_KILLS=20 for another number, and HONED_FAULTS=1 for twenty. HONED_KILLS_OUT names
a JSON file that what came out is added to.
"""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

KILLS = int(os.environ.get("HONED_KILLS", "20" if os.environ.get("HONED_FAULTS") else "2"))
SECONDS = 600  # no process takes as long

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@dataclass(slots=True)
class Struck:
    """How often a run was killed, and how many of these times a checkpoint was half written."""

    kills: int = 0
    in_saves: int = 0


def kill_until_done(
    forked: Callable[..., int], work: Callable[[], None], folder: Path, reached: Callable[[int], bool]
) -> Struck:
    """Does the work in one new process after the other, and kills each of the first KILLS, every second one in a save.

    Args:
        forked: the fixture of this name, which does the work in a new process.
        work: goes on from what is in the folder.
        folder: of the run; checkpoints are half written in `.checkpoint-part-*`.
        reached: whether the run has come far enough for the kill of this number, counted from 0.

    Raises:
        AssertionError: a process failed by itself, or never ended.
    """
    draw, struck = random.Random(1), Struck()
    while True:
        child, end = forked(work), time.monotonic() + SECONDS
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if struck.kills < KILLS and reached(struck.kills) and (struck.kills % 2 == 0 or writes(folder)):
                time.sleep(draw.random() / (20 if struck.kills % 2 == 0 else 1000))
                os.kill(child, signal.SIGSTOP)  # so that it does not end its save while we look
                if struck.kills % 2 == 0 or writes(folder):
                    struck.kills, struck.in_saves = struck.kills + 1, struck.in_saves + writes(folder)
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    break
                os.kill(child, signal.SIGCONT)
            assert time.monotonic() < end, "it never ends"
            time.sleep(0.0005)
        if ended[0]:
            assert ended[1] == 0, "it failed by itself"
            return struck


def writes(folder: Path) -> bool:
    """Whether a checkpoint is half written."""
    return any(folder.glob(".checkpoint-part-*"))


def keep_result(engine: str, way: str, **facts: Any) -> None:
    """Adds what came out to the file that HONED_KILLS_OUT names."""
    if (out := os.environ.get("HONED_KILLS_OUT")) is None:
        return
    path = Path(out)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": []}
    known["date"] = datetime.now(timezone.utc).date().isoformat()
    known["machine"] = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    known["versions"] = {name: version(name) for name in ("torch", "transformers", "peft")}
    known["runs"].append({"engine": engine, "way": way, **facts})
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
