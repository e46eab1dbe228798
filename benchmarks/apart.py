"""Runs parts of a script in separate processes and saves each result as it comes; failures are results too.

Such a script calls itself with `--job FOLDER`, where `answer` finds what to do. A crash, an error or lack of memory is
recorded with its reason and does not stop other runs. Recorded runs are not repeated, so an interrupted command resumes
when it is given again; to retry a failed run, delete it from the file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

KEY = ("case", "side", "round")
PATIENCE = 6  # a run that takes this many times the expected time is considered hung, and is ended
Run = dict[str, Any]
Record = dict[str, Any]


def carry_out(
    script: str,
    runs: list[Run],
    record: Record,
    *,
    out: Path | None,
    minutes: float | None,
    guess: float,
    together: bool = False,
    environment: dict[str, str] | None = None,
    settle: Callable[[Record], None] = lambda _: None,
) -> bool:
    """Performs the runs that `record["runs"]` lacks, in order; returns whether the record is now complete.

    Args:
        out: where the record is written after each run; None to write nothing.
        runs: each with `case`, `side`, `round`, and `missing`, the reason if it is known that it cannot run.
        minutes: stop before a run that would probably exceed this limit; None for no limit.
        guess: expected seconds per run, until the first one has been measured.
        settle: modifies the record before it is written.
        together: use one process for adjacent runs of one package (`run["package"]`), to save time.
    """
    started, took = time.monotonic(), [guess]
    for run in left(runs, record):
        if run.get("missing"):
            note(record, [run], [{"failed": run["missing"]}])
    todo = left(runs, record)
    print(f"{len(todo)} runs to do, {len(todo) * guess / 60:.0f} minutes or so", flush=True)
    for batch in batches(todo, together=together):
        spent = time.monotonic() - started
        if minutes is not None and spent + max(took[-4:]) > minutes * 60:
            print(f"{len(left(runs, record))} runs are left; the same command goes on with them", flush=True)
            return False
        before = time.monotonic()
        note(record, batch, apart(script, batch, timeout=PATIENCE * guess * len(batch), environment=environment))
        took.append(time.monotonic() - before)
        settle(record)
        write(out, record)
    return True


def note(record: Record, runs: list[Run], results: list[Run]) -> None:
    for run, result in zip(runs, results, strict=True):
        record["runs"].append({**{key: run[key] for key in KEY}, **result})
        told = result.get("failed") or result.get("summary", "done")
        print(f"  {run['case']:24}{run['side']:36}{told}", flush=True)


def left(runs: list[Run], record: Record) -> list[Run]:
    """The runs that are not in the record."""
    done = {tuple(run[key] for key in KEY) for run in record["runs"]}
    return [run for run in runs if tuple(run[key] for key in KEY) not in done]


def batches(runs: list[Run], *, together: bool) -> Iterator[list[Run]]:
    if not together:
        return ([run] for run in runs)
    packages = sorted(runs, key=lambda run: run["package"])
    return (list(group) for _, group in groupby(packages, key=lambda run: run["package"]))


def apart(script: str, runs: list[Run], *, timeout: float, environment: dict[str, str] | None = None) -> list[Run]:
    """The result of each run: the script's, or `failed` with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
        command = [sys.executable, "-W", "ignore", script, "--job", folder]
        with (place / "log").open("w", encoding="utf-8") as log:
            try:
                environment = {**os.environ, **(environment or {})}
                code = subprocess.run(
                    command, env=environment, stdout=log, stderr=log, timeout=timeout, check=False
                ).returncode
                ended = f"its process ended with {code}"
            except subprocess.TimeoutExpired:
                ended = f"no end after {timeout:.0f} s"
        lines = (place / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        failed = {"failed": ": ".join([ended, *lines[-1:]])[:400]}
        return [read(place / f"{number}.json") or failed for number in range(len(runs))]


def answer(folder: str, work: Callable[[Run], Run]) -> None:
    """In the separate process: performs `work` for each run in the folder, and records why it failed if it did."""
    import torch

    for number, run in enumerate(json.loads((Path(folder) / "runs.json").read_text(encoding="utf-8"))):
        try:
            result = work(run)
        except torch.OutOfMemoryError as error:
            result = {"failed": f"out of memory: {first_line(error)}", "out_of_memory": True}
        except Exception as error:  # any error of a peer is its result
            result = {"failed": f"{type(error).__name__}: {first_line(error)}"}
        write(Path(folder) / f"{number}.json", result)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def open_record(out: Path | None, facts: Record) -> Record:
    """The record in the file, to be resumed; otherwise a new one with these facts (date, machine, versions).

    Raises:
        SystemExit: the file's record was measured on another machine or with other versions.
    """
    there = None if out is None else read(out)
    if there is None:
        return {**facts, "runs": [], "results": []}
    other = [key for key, value in facts.items() if key != "date" and there.get(key) != value]
    if other:
        raise SystemExit(f"{out} was begun with another {' and '.join(other)}. Name another file with --out.")
    return there


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def write(out: Path | None, record: Record) -> None:
    """Writes a temporary file first, so that a killed run leaves no partial file."""
    if out is not None:
        aside = out.with_name(f"{out.name}.part")
        aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        aside.replace(out)
