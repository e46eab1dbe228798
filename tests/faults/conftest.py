"""The command line on a tiny model, and machines that fail in the ways that machines do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_tools import Shown

NOBODY = 65534


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Undoes what a command leaves in the process, and lets no thread wait for another."""
    import torch
    from transformers.utils import logging

    level, threads, ctrl_c = logging.get_verbosity(), torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    torch.set_num_threads(1)
    yield
    signal.signal(signal.SIGINT, ctrl_c)
    torch.set_num_threads(threads)
    logging.set_verbosity(level)
    logging.enable_progress_bar()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where `train` puts its run."""
    return tmp_path / "run"


@pytest.fixture
def arguments(model_folder: Path, rows_file: Path, run: Path) -> list[str]:
    """`honed train` for three steps."""
    into = ["--model", str(model_folder), "--data", str(rows_file), "--output", str(run)]
    return ["train", *into, "max_steps=3", "per_device_train_batch_size=2", "dtype=float32"]


@pytest.fixture
def train(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., Shown]:
    """`honed train` in this process; further arguments come last and win."""
    from honed.cli.main import main

    def call(*more: str) -> Shown:
        capsys.readouterr()
        status = main([*arguments, *more])
        shown = capsys.readouterr()
        return Shown(status=status, out=shown.out, err=shown.err)

    return call


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MB: more than a run asks for at its start."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    tried = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if not tried or tried.returncode:
        pytest.skip("only root may mount a file system of its own")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that everybody may enter, and the rights of a user who owns nothing in it."""
    if not hasattr(os, "seteuid") or os.geteuid() != 0:
        pytest.skip("only root can lay down its rights and take them up again")
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    os.seteuid(NOBODY)
    yield place
    os.seteuid(0)
    shutil.rmtree(place)
