"""Reads and renders in several processes: each takes every n-th chunk of rows, and the order is kept.

Processes are forked, so rows, template and tokenizer need not be sent. The calling process works as well, and combines
the results. Each process iterates over all rows, but parses only those of its own chunks.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import IO

from honed.data.ledger import Ledger
from honed.data.prepare.handover import Parcel, content_of, memory_file, put, take
from honed.data.prepare.kept import KeptRows
from honed.data.prepare.reader import ROWS_AT_A_TIME, RowReader
from honed.data.read.sources import SourcedRow, UnreadRow
from honed.errors import DataError

Rows = Callable[[], Iterator[UnreadRow]]
Advance = Callable[[], None]
_LEAD = 2  # chunks that a process may be ahead of the slowest one before it takes over chunks of others
_AHEAD = 3  # chunks assigned to a helper in advance, so that it need not wait while the calling process is busy


def can_fork() -> bool:
    """Whether processes can be forked safely on this system."""
    return sys.platform == "linux" and hasattr(os, "memfd_create")  # not on old Linux


def kept_rows(rows: Iterator[SourcedRow], read: RowReader, ledger: Ledger, advance: Advance) -> list[KeptRows]:
    """Reads the trainable rows in this process, chunk by chunk; see `RowReader`.

    Args:
        advance: called each time more rows have been added to `ledger`.
    """
    kept = []
    while chunk := list(islice(rows, ROWS_AT_A_TIME)):
        kept.append(read.columns(chunk, ledger))
        advance()
    return kept


def kept_rows_by_workers(rows: Rows, read: RowReader, ledger: Ledger, advance: Advance, workers: int) -> list[KeptRows]:
    """Like `kept_rows`, with `workers` processes including this one; `rows` must yield the same rows in each.

    Raises:
        DataError: a process died, for example for lack of memory; otherwise as in `RowReader`.
    """
    read.get_ready()  # once here instead of in every process
    places, order = _Places(workers), _Order(ledger, advance)
    helpers: list[_Helper] = []
    try:
        for number in range(1, workers):
            helpers.append(_Helper(number, rows, read, places))
        for place, found in _found(rows, read, partial(places.next, 0)):
            order.add(place, found if isinstance(found, Exception) else (partial(_as_it_is, found[0]), found[1]))
            while _collect(helpers, order, timeout=0):
                pass
        while any(helper.works for helper in helpers):
            _collect(helpers, order, timeout=None)
        return [kept() for kept in order.kept]
    finally:
        for helper in helpers:
            helper.end()


class _Places:
    """Assigns chunks to processes: every n-th one, or the next free one to a process ahead of the slowest."""

    def __init__(self, workers: int) -> None:
        self._last = [-1] * workers
        self._given = [0] * workers
        self._taken: set[int] = set()

    def next(self, number: int) -> int:
        """The next chunk for this process, in ascending order."""
        is_ahead = self._given[number] - min(self._given) > _LEAD
        place, step = self._last[number] + 1, 1 if is_ahead else len(self._last)
        if not is_ahead:
            place += (number - place) % step
        while place in self._taken:
            place += step
        self._taken.add(place)
        self._last[number] = place
        self._given[number] += 1
        return place


@dataclass(slots=True)
class _Order:
    """Restores the order of chunks that arrive in any order: `kept` gives the rows of each chunk."""

    ledger: Ledger
    advance: Advance
    kept: list[Callable[[], KeptRows]] = field(default_factory=list)
    _waiting: dict[int, tuple[Callable[[], KeptRows], Ledger] | Exception] = field(default_factory=dict)

    def add(self, place: int, found: tuple[Callable[[], KeptRows], Ledger] | Exception) -> None:
        """Counts and keeps all chunks whose turn has come.

        Raises:
            Exception: the error of a chunk, when its turn has come.
        """
        self._waiting.setdefault(place, found)
        while (turn := self._waiting.pop(len(self.kept), None)) is not None:
            if isinstance(turn, Exception):
                raise turn
            kept, own = turn
            self.ledger.add(own)
            self.kept.append(kept)
            self.advance()


class _Helper:
    """Another process; `works` until it reports that it is done."""

    def __init__(self, number: int, rows: Rows, read: RowReader, places: _Places) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, its = context.Pipe()
        self.works = True
        self._next = partial(places.next, number)
        self._file = memory_file()
        self._content: memoryview | None = None
        self._process = context.Process(target=_help, args=(rows, read, self._file, self.pipe, its), daemon=True)
        with warnings.catch_warnings():
            # Python >= 3.12 warns about the parent's threads; the child does not use those of torch and tokenizers
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        its.close()  # the child has its own; an open copy here would hide the end of the child
        for _ in range(_AHEAD):
            self._give()

    def receive(self, order: _Order) -> None:
        """Receives one message of the process and adds it to `order`."""
        try:
            sent = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise DataError(
                f"A process that prepares data died (exit code {self._process.exitcode}).",
                fix="memory may have run out: use fewer workers",
            ) from None
        if sent is None:
            self.works = False
        elif isinstance(sent[1], Exception):
            order.add(*sent)
        else:
            place, (parcel, own) = sent
            self._give()
            order.add(place, (partial(self._take, parcel), own))

    def _give(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it is done or dead: its messages tell which
            self.pipe.send(self._next())

    def end(self) -> None:
        """Stops the process if it still runs."""
        self._process.terminate()
        self._process.join()
        self.pipe.close()
        self._file.close()

    def _take(self, parcel: Parcel) -> KeptRows:
        if self._content is None:  # not before everything is written
            self._content = content_of(self._file)
        kept: KeptRows = take(parcel, self._content)
        return kept


def _collect(helpers: Sequence[_Helper], order: _Order, *, timeout: float | None) -> bool:
    """Adds at most one message from each helper; returns whether there was any.

    Args:
        timeout: seconds to wait for a message; None to wait without limit.
    """
    working = {helper.pipe: helper for helper in helpers if helper.works}
    ready = wait(list(working), timeout) if working else []
    for pipe in ready:
        working[pipe].receive(order)  # type: ignore[index]
    return bool(ready)


def _help(rows: Rows, read: RowReader, file: IO[bytes], parents: Connection, pipe: Connection) -> None:
    """Sends the results for the places it receives, then None."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive the fork
    parents.close()  # an open copy here would hide the end of the parent
    try:
        for place, found in _found(rows, read, pipe.recv):
            pipe.send((place, found if isinstance(found, Exception) else (put(found[0], file), found[1])))
        pipe.send(None)
    except (KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        pass  # the parent is interrupted as well, or gone
    finally:
        pipe.close()


def _found(
    rows: Rows, read: RowReader, next_place: Callable[[], int]
) -> Iterator[tuple[int, tuple[KeptRows, Ledger] | Exception]]:
    """Yields the results of this process's chunks with their places; an error ends it, as the last result."""
    at = 0
    try:
        iterator = rows()
        while True:
            place = next_place()
            while at < place:
                deque(islice(iterator, ROWS_AT_A_TIME), maxlen=0)  # skip chunks of other processes
                at += 1
            chunk = [row() for row in islice(iterator, ROWS_AT_A_TIME)]
            if not chunk:
                return
            yield at, _read(at, chunk, read)
            at += 1
    except Exception as error:
        yield at, error


def _read(place: int, chunk: list[SourcedRow], read: RowReader) -> tuple[KeptRows, Ledger]:
    before = place * ROWS_AT_A_TIME
    ledger = Ledger(rows_in=before)  # the reader checks whether rows were read before
    kept = read.columns(chunk, ledger)
    ledger.rows_in -= before
    return kept, ledger


def _as_it_is(kept: KeptRows) -> KeptRows:
    return kept
