"""Runs of a script in processes of their own, whose failures are results too, kept in a file as they come.

A script that measures so calls itself with `--job FOLDER`, where `answer` finds what to do. One side's crash, error or
lack of memory is written down with its reason and ends nothing else. What is in the file already is not run again, so
a command that was cut short goes on when it is given once more; to try a failed run again, delete it from the file.
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
PATIENCE = 6  # a run that takes so many times what was guessed hangs, and is ended
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
    """Carries out those runs that `record["runs"]` lacks, in order; returns whether all are there now.

    Args:
        out: where the record is written after each of them; None for nowhere.
        runs: with `case`, `side`, `round`, and `missing`, the reason, where it is known that one cannot run.
        minutes: stop before a run that would probably not end within so many; None for no limit.
        guess: seconds that a run takes, until one has shown it.
        settle: changes the record before it is written.
        together: one process for neighbouring runs of one package (`run["package"]`), to save time.
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
    """Those of the runs that are not in the record."""
    done = {tuple(run[key] for key in KEY) for run in record["runs"]}
    return [run for run in runs if tuple(run[key] for key in KEY) not in done]


def batches(runs: list[Run], *, together: bool) -> Iterator[list[Run]]:
    if not together:
        return ([run] for run in runs)
    packages = sorted(runs, key=lambda run: run["package"])
    return (list(group) for _, group in groupby(packages, key=lambda run: run["package"]))


def apart(script: str, runs: list[Run], *, timeout: float, environment: dict[str, str] | None = None) -> list[Run]:
    """What came of each: the script's result, or `failed` with the reason."""
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
    """In the process apart: `work` for each run in the folder, or why it could not be done."""
    import torch

    for number, run in enumerate(json.loads((Path(folder) / "runs.json").read_text(encoding="utf-8"))):
        try:
            result = work(run)
        except torch.OutOfMemoryError as error:
            result = {"failed": f"out of memory: {first_line(error)}", "out_of_memory": True}
        except Exception as error:  # whatever a peer raises is its result
            result = {"failed": f"{type(error).__name__}: {first_line(error)}"}
        write(Path(folder) / f"{number}.json", result)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def open_record(out: Path | None, facts: Record) -> Record:
    """The record that the file holds, to be gone on with; else a new one with these facts (date, machine, versions).

    Raises:
        SystemExit: what the file holds was measured on another machine or with other versions.
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
    """Beside its place first, so that a killed run leaves no half file."""
    if out is not None:
        aside = out.with_name(f"{out.name}.part")
        aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        aside.replace(out)
