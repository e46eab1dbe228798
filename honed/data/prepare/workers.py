"""Reading and rendering in several processes: each takes every n-th chunk of rows, and the order stays.

Processes are forked, so rows, template and tokenizer need not be sent. The calling process works too, and puts the
results together. Each process iterates over all rows, but parses only those of its own chunks.
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
_LEAD = 2  # chunks that a process may be ahead of the slowest before it takes over chunks of others
_AHEAD = 3  # chunks assigned to a helper in advance, so that it need not wait while this process is busy


def can_fork() -> bool:
    """Whether processes can be forked safely here."""
    return sys.platform == "linux" and hasattr(os, "memfd_create")  # older Linux has none


def kept_rows(rows: Iterator[SourcedRow], read: RowReader, ledger: Ledger, advance: Advance) -> list[KeptRows]:
    """The rows that can be trained, chunk by chunk, in this process; see `RowReader`.

    Args:
        advance: called each time when `ledger` knows of more rows.
    """
    kept = []
    while chunk := list(islice(rows, ROWS_AT_A_TIME)):
        kept.append(read.columns(chunk, ledger))
        advance()
    return kept


def kept_rows_by_workers(rows: Rows, read: RowReader, ledger: Ledger, advance: Advance, workers: int) -> list[KeptRows]:
    """The same, made by `workers` processes, of which this is one; `rows` must give the same rows in each.

    Raises:
        DataError: a process died, as when memory runs out; else as `RowReader`.
    """
    read.get_ready()  # once, not in every process
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
    """Which chunk each process takes next: every n-th, and while it is ahead of the slowest, the next that is left."""

    def __init__(self, workers: int) -> None:
        self._last = [-1] * workers
        self._given = [0] * workers
        self._taken: set[int] = set()

    def next(self, number: int) -> int:
        """For this process; what it gets ascends."""
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
    """Puts in order what comes in any: `kept` gives the rows of each chunk."""

    ledger: Ledger
    advance: Advance
    kept: list[Callable[[], KeptRows]] = field(default_factory=list)
    _waiting: dict[int, tuple[Callable[[], KeptRows], Ledger] | Exception] = field(default_factory=dict)

    def add(self, place: int, found: tuple[Callable[[], KeptRows], Ledger] | Exception) -> None:
        """Counts and keeps all whose turn it is.

        Raises:
            Exception: what went wrong, when it is the turn of that.
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
    """Another process; `works` until it said that it is done."""

    def __init__(self, number: int, rows: Rows, read: RowReader, places: _Places) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, its = context.Pipe()
        self.works = True
        self._next = partial(places.next, number)
        self._file = memory_file()
        self._content: memoryview | None = None
        self._process = context.Process(target=_help, args=(rows, read, self._file, self.pipe, its), daemon=True)
        with warnings.catch_warnings():
            # Python >= 3.12 warns of threads of the parent; those of torch and tokenizers are not used by the child
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        its.close()  # the child has its own; without this the end of a child would not be seen
        for _ in range(_AHEAD):
            self._give()

    def receive(self, order: _Order) -> None:
        """Adds what it sent."""
        try:
            sent = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise DataError(
                f"A process that prepares data ended by itself (exit code {self._process.exitcode}).",
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
        with suppress(BrokenPipeError, ConnectionResetError):  # it is done, or dead: what it sent says which
            self.pipe.send(self._next())

    def end(self) -> None:
        """Stops it if it still runs."""
        self._process.terminate()
        self._process.join()
        self.pipe.close()
        self._file.close()

    def _take(self, parcel: Parcel) -> KeptRows:
        if self._content is None:  # not before all is written
            self._content = content_of(self._file)
        kept: KeptRows = take(parcel, self._content)
        return kept


def _collect(helpers: Sequence[_Helper], order: _Order, *, timeout: float | None) -> bool:
    """Adds what helpers sent, one message of each, and tells whether there was any.

    Args:
        timeout: seconds to wait for one; None for as long as it takes.
    """
    working = {helper.pipe: helper for helper in helpers if helper.works}
    ready = wait(list(working), timeout) if working else []
    for pipe in ready:
        working[pipe].receive(order)  # type: ignore[index]
    return bool(ready)


def _help(rows: Rows, read: RowReader, file: IO[bytes], parents: Connection, pipe: Connection) -> None:
    """Sends what it finds at the places that it is given, then None."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive the fork
    parents.close()  # without this the end of the parent would not be seen
    try:
        for place, found in _found(rows, read, pipe.recv):
            pipe.send((place, found if isinstance(found, Exception) else (put(found[0], file), found[1])))
        pipe.send(None)
    except (KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        pass  # the parent is told as well, or gone
    finally:
        pipe.close()


def _found(
    rows: Rows, read: RowReader, next_place: Callable[[], int]
) -> Iterator[tuple[int, tuple[KeptRows, Ledger] | Exception]]:
    """What becomes of the chunks at the places that this process takes; last, with its place, what went wrong."""
    at = 0
    try:
        iterator = rows()
        while True:
            place = next_place()
            while at < place:
                deque(islice(iterator, ROWS_AT_A_TIME), maxlen=0)  # passed over
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
    ledger = Ledger(rows_in=before)  # the reader looks whether anything was read before
    kept = read.columns(chunk, ledger)
    ledger.rows_in -= before
    return kept, ledger


def _as_it_is(kept: KeptRows) -> KeptRows:
    return kept
