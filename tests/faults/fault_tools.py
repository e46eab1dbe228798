"""What the fault tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

long = pytest.mark.skipif(not os.environ.get("HONED_FAULTS"), reason="a long one: HONED_FAULTS=1, or `make faults`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a command left: its exit status and what it wrote."""

    status: int
    out: str
    err: str


def assert_mendable(shown: Shown, *says: str) -> None:
    """Status 2, a fix, no traceback."""
    assert shown.status == 2, shown.err
    assert "fix: " in shown.err
    assert "Traceback" not in shown.err
    for text in says:
        assert text in shown.err


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Another Python that finds this checkout, on one thread; `env` is added to the environment."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment = {**os.environ, **own, **options.pop("env", {})}
    given = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 120, **options}
    return subprocess.run([sys.executable, *arguments], env=environment, check=False, **given)
