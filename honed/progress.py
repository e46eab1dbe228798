"""Progress of long steps: a bar in a terminal or notebook, occasional lines in a pipe."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar

from honed.quantities import counted

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0


def progress(
    items: Iterable[T], *, desc: str, total: int | None = None, unit: str = "item", stream: TextIO | None = None
) -> Iterator[T]:
    """Yields `items` unchanged and shows how many the caller has taken.

    Args:
        desc: a few words that say what is being done.
        total: number of items; None for `len(items)`, if it has a length.
        unit: what is counted, in the singular.
        stream: where to write; None for standard error.
    """
    with Progress(desc=desc, total=_length(items) if total is None else total, unit=unit, stream=stream) as bar:
        for item in items:
            yield item
            bar.advance()


class Progress:
    """Progress of one step, advanced manually; a context manager.

    In a terminal it is a tqdm bar, in a notebook tqdm's widget. If standard error is a pipe or a file, it prints a
    plain line at most every ten seconds and one at the end, without carriage returns. In distributed training, only the
    process with `RANK` 0 shows its progress.
    """

    def __init__(self, *, desc: str, total: int | None, unit: str = "item", stream: TextIO | None = None) -> None:
        self.desc, self.total, self.unit = desc, total, unit
        self.count = 0
        self.note, self._noted_at = "", 0
        self._stream: TextIO = stream or (sys.stderr if os.environ.get("RANK", "0") == "0" else io.StringIO())
        self._started = self._last_line = time.monotonic()
        self._bar = self._open_bar()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close(finished=exc[0] is None)

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """Counts `n` more items; `note` replaces the text after the bar (loss, tokens per second)."""
        self.count += n
        if note is not None:
            self.note, self._noted_at = note, self.count
        if self._bar is not None:
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(n)
        elif self.count != self.total and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._write_line()  # the last one is `close`'s, which knows the last note

    def close(self, *, finished: bool = True) -> None:
        """Closes the bar; in a pipe, prints the last line."""
        if self._bar is not None:
            self._bar.close()
        elif finished and self.count:
            self._write_line()

    def write(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._stream.write(text + "\n")

    def _open_bar(self) -> Any:
        if not (self._stream.isatty() or in_notebook()):
            return None
        from tqdm.auto import tqdm

        return tqdm(desc=self.desc, total=self.total, unit=self.unit, file=self._stream, dynamic_ncols=True)

    def _write_line(self) -> None:
        self._last_line = time.monotonic()
        elapsed = self._last_line - self._started
        plural = self.unit if self.unit.isupper() else ""  # units such as MB have no plural
        done = counted(self.count, self.unit, plural)
        if self.total is not None:
            done = f"{self.count:,}/{counted(self.total, self.unit, plural)}"
        left = ""
        if self.total and 0 < self.count < self.total:
            left = f", {clock(elapsed / self.count * (self.total - self.count))} left"
        whose = "" if self._noted_at == self.count else f" ({self.unit} {self._noted_at:,})"
        note = f"  {self.note}{whose}" if self.note else ""
        self._stream.write(f"{self.desc}: {done} in {clock(elapsed)}{left}{note}\n")
        self._stream.flush()


def clock(seconds: float) -> str:
    """75.2 -> '1:15'; 3601 -> '1:00:01'."""
    whole = int(seconds)
    hours, minutes, secs = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def in_notebook() -> bool:
    """Whether this runs in a Jupyter or Colab kernel, where standard error is no terminal but widgets work."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


def _length(items: Iterable[Any]) -> int | None:
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        return None
