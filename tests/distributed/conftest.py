"""Starts distributed runs: `ranks(name, **job)`, see `program.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A run that has ended.

    Attributes:
        out: its folder.
        statuses: exit status of each rank, negative for a signal.
    """

    out: Path
    statuses: list[int]

    def told(self, rank: int = 0) -> dict[str, Any]:
        """What a rank logged; the test fails with what it printed if there is nothing."""
        assert self.statuses[rank] == 0, self.err(rank)
        return json.loads((self.out / f"log-{rank}.json").read_text())

    def err(self, rank: int) -> str:
        """What a rank printed."""
        return (self.out / f"err-{rank}.txt").read_text()

    def steps(self) -> list[dict[str, float]]:
        """The lines of training."""
        return [line for line in self.told()["log"] if "loss" in line]

    def weights(self) -> dict[str, Any]:
        """Of the saved model or adapter."""
        from safetensors.torch import load_file

        [file] = (self.out / "model").glob("*.safetensors")
        return load_file(file)


Ranks = Callable[..., Ended]


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Iterator[Ranks]:
    """Runs a job; one program for all tests of this folder, since its imports take longer than all runs together."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny_tokenizer.save_pretrained(folder / "tokenizer")
    own = {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # no thread of Arrow's allocator beside the forks, and a rank that the C library aborts says where it was
    own |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "PYTHONFAULTHANDLER": "1"}
    program = subprocess.Popen(
        [sys.executable, str(HERE / "program.py")],
        env={**os.environ, **own},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip

    def start(name: str, *, world: int = 2, rows: int = 8, out: Path | None = None, **job: Any) -> Ended:
        assert program.stdin is not None and program.stdout is not None
        out = out or folder / name
        whole = {"out": str(out), "world": world, "rows": rows, "tokenizer": str(folder / "tokenizer"), **job}
        program.stdin.write(json.dumps(whole) + "\n")
        program.stdin.flush()
        return Ended(out=out, statuses=json.loads(program.stdout.readline()))

    yield start
    program.communicate("\n")
