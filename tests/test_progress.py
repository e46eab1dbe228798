"""Progress in a pipe, in a terminal, and when the items run dry."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest

from honed import progress as module
from honed.progress import Progress, clock, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The clock that the module reads; tests set it by hand."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    yield now


def test_items_pass_and_a_pipe_gets_lines(time: list[float]) -> None:
    out, seen = io.StringIO(), []
    for item in progress(["a", "b", "c", "d"], desc="Reading", unit="row", stream=out):
        seen.append(item)
        time[0] += 6
    assert seen == ["a", "b", "c", "d"]
    assert out.getvalue() == "Reading: 2/4 rows in 0:12, 0:12 left\nReading: 4/4 rows in 0:24\n"


@pytest.mark.parametrize(
    ("items", "total", "last"),
    [
        ([1, 2], None, "Reading: 2/2 items in 0:00\n"),
        (iter([1, 2]), None, "Reading: 2 items in 0:00\n"),
        (iter([1, 2]), 5, "Reading: 2/5 items in 0:00, 0:00 left\n"),
        ([], None, ""),
    ],
)
def test_the_last_line_says_the_count(items: object, total: int | None, last: str) -> None:
    out = io.StringIO()
    list(progress(items, desc="Reading", total=total, stream=out))  # type: ignore[arg-type]
    assert out.getvalue() == last


def test_items_that_break_off() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    out, seen = io.StringIO(), []
    with pytest.raises(OSError, match="gone"):
        for item in progress(broken(), desc="Reading", stream=out):
            seen.append(item)
    assert (seen, out.getvalue()) == ([1], "")  # no line that looks like an end


def test_a_terminal_gets_a_bar() -> None:
    out = Terminal()
    with Progress(desc="Training", total=3, unit="step", stream=out) as bar:
        bar.advance(2, note="loss 1.5")
        bar.write("a line")
        bar.advance()
    assert re.search(r"Training: 100%.*3/3 .*loss 1\.5", out.getvalue().rpartition("\r")[2])
    assert re.search(r"\r *\ra line\n", out.getvalue())  # the bar is wiped first


def test_by_hand(time: list[float]) -> None:
    out = io.StringIO()
    with Progress(desc="Training", total=None, unit="step", stream=out) as bar:
        bar.advance(3, note="loss 1.5")
        bar.write("a line")
        time[0] = 75
    assert out.getvalue() == "a line\nTraining: 3 steps in 1:15  loss 1.5\n"
    assert (bar.count, "\r" in out.getvalue()) == (3, False)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.9, "1:15"), (3599, "59:59"), (3601, "1:00:01")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_only_the_first_of_several_processes_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert list(progress(range(3), desc=f"by rank {rank}")) == [0, 1, 2]
    told = capsys.readouterr().err
    assert "by rank 0: 3/3" in told and "by rank 1" not in told
