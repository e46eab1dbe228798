"""One run at a time in a folder: held against other processes, free when its process is gone."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from honed.errors import RunError
from honed.train.run_folder import lock as module
from honed.train.run_folder.folder import RunFolder
from honed.train.run_folder.lock import LOCK, run_lock

HOLD = """
import sys, time
from pathlib import Path
from honed.train.run_folder.lock import run_lock
with run_lock(Path(sys.argv[1])) as note:
    print("held", note, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of tmp_path until it is told otherwise."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("held")
        yield process
        process.kill()


def holder_of(folder: Path, **changes: Any) -> None:
    """Leaves the words of a run behind, as one does that was killed."""
    words = {"pid": 4711, "host": socket.gethostname(), "boot": module._boot(), "since": "then", **changes}
    (folder / LOCK).write_text(json.dumps(words))


def test_the_second_is_told_who_is_there(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=f"Another run is using .*process {holder.pid} on") as caught,
        run_lock(tmp_path),
    ):
        pass
    assert "output=" in caught.value.fix


def test_a_killed_holder_is_taken_over_with_a_note(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    holder.wait()
    with run_lock(tmp_path) as note:
        assert f"process {holder.pid} on" in note and "killed" in note


def test_an_orderly_end_leaves_nothing(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.communicate("\n")
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path) as note:
        assert note == ""


def test_the_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        with pytest.raises(RunError), run_lock(tmp_path):
            pass
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_an_error_inside_frees_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("words", ["", "{", "[]", '{"pid": "x"}'])
def test_words_that_are_none(words: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(words)
    with run_lock(tmp_path):
        pass


def count_up(folder: str, times: int) -> int:
    """Adds one to a file under the lock, so that a lock held twice loses a count."""
    done = 0
    while done < times:
        try:
            with run_lock(Path(folder)):
                file = Path(folder) / "count"
                value = int(file.read_text()) if file.exists() else 0
                file.write_text(str(value + 1))
                done += 1
        except RunError:
            continue
    return done


def test_no_two_processes_ever_hold_it(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(count_up, [(str(tmp_path), 60)] * 3)
    assert (tmp_path / "count").read_text() == "180"


def test_only_the_first_rank_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with run_lock(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with run_lock(tmp_path) as note:
            assert note == ""
        assert (tmp_path / LOCK).exists()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows none."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(module, "_system_lock", refuse)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(
    ("words", "free"),
    [
        ({"pid": os.getpid()}, False),
        ({"pid": os.getpid(), "boot": "another"}, True),
        ({"host": "elsewhere", "boot": "another"}, False),
    ],
)
def test_without_locks_the_words_decide(words: dict[str, Any], free: bool, tmp_path: Path) -> None:
    holder_of(tmp_path, **words)
    if free:
        with run_lock(tmp_path) as note:
            assert "killed" in note
    else:
        with pytest.raises(RunError, match="Another run"), run_lock(tmp_path):
            pass


@pytest.mark.usefixtures("no_locks")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot tell a dead process by its number")
def test_without_locks_a_dead_process_is_known(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    holder_of(tmp_path, pid=dead.pid)
    with run_lock(tmp_path) as note:
        assert str(dead.pid) in note


def test_a_folder_says_its_note_and_is_not_taken_for_foreign(tmp_path: Path) -> None:
    holder_of(tmp_path)
    said: list[str] = []
    folder = RunFolder(tmp_path)
    with folder.locked(said.append):
        folder.claim("model: x\n", overwrite=False)
    assert len(said) == 1 and said[0].startswith("note: ")
