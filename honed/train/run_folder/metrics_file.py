"""`metrics.jsonl` and similar files: one JSON object per line, intact after a kill, continued from any step."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from honed.errors import storage_errors


class MetricsLines:
    """Appends one JSON object per line, flushed at once; a resumed run drops the lines after its step."""

    def __init__(self, path: Path, *, step: int) -> None:
        self._path, self._started = path, time.perf_counter()
        drop_after(path, step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `append_line`."""
        with storage_errors(self._path.parent):
            append_line(self._path, step, time.perf_counter() - self._started, values)

    def close(self) -> None:
        """No file is kept open."""


def append_line(path: Path, step: int, seconds: float, values: Mapping[str, Any]) -> None:
    """Appends a JSON object; NaN and infinity, which JSON lacks, become null."""
    line = {"step": step, "seconds": round(seconds, 3), **{key: _finite(value) for key, value in values.items()}}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def drop_after(path: Path, step: int) -> None:
    """Drops the lines after a step from a JSON Lines file, all of them for step 0; creates the file if missing."""
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text(encoding="utf-8").splitlines() if step and path.exists() else []
        beside = path.with_name(f".{path.name}.{os.getpid()}")  # renamed later: a kill must not lose lines
        beside.write_text("".join(f"{line}\n" for line in old if _step_of(line) <= step), encoding="utf-8")
        beside.replace(path)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line that a kill truncated
