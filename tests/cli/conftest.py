"""The command line run in this process on a tiny model, as its user would see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a command left: its exit status and what it wrote."""

    status: int
    out: str
    err: str


Honed = Callable[..., Shown]
Train = Callable[..., Shown]


@pytest.fixture(autouse=True)
def loud_again() -> Iterator[None]:
    """Undoes `quiet_libraries`, which is meant to last as long as the process."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other cost far more than they bring."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def honed(capsys: pytest.CaptureFixture[str]) -> Honed:
    """Runs one command."""
    from honed.cli.main import main

    def call(*arguments: str | Path) -> Shown:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return Shown(status=status, out=shown.out, err=shown.err)

    return call


@pytest.fixture
def rows_file(rows_file: Path) -> Path:
    """The shared one, under a name that YAML, shells and lists would all like to take apart."""
    return rows_file.rename(rows_file.with_name("it's, 数据 #1: [rows].jsonl"))


@pytest.fixture
def train(honed: Honed, tmp_path: Path, model_folder: Path, rows_file: Path) -> Train:
    """`honed train` for two steps into tmp_path/run; further arguments come last and win."""

    def call(*more: str | Path, data: Path = rows_file) -> Shown:
        into = ("--model", model_folder, "--data", data, "--output", tmp_path / "run")
        return honed("train", *into, "max_steps=2", *more)

    return call
