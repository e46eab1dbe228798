"""Reading and rendering in several processes: each takes every n-th chunk of rows, and the order stays.

Processes are forked, so that rows, template and tokenizer need not be sent; what they give back are columns. Every one
reads all rows, which is cheap beside rendering and encoding them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import count, islice
from multiprocessing.connection import Connection
from typing import Any

from honed.data.kept import KeptRows
from honed.data.ledger import Ledger
from honed.data.reader import ROWS_AT_A_TIME, RowReader
from honed.data.sources import SourcedRow
from honed.errors import DataError

Rows = Callable[[], Iterator[SourcedRow]]


def can_fork() -> bool:
    """Whether processes can be forked safely here."""
    return sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()


def kept_rows(rows: Iterator[SourcedRow], read: RowReader, ledger: Ledger) -> Iterator[KeptRows]:
    """The rows that can be trained, chunk by chunk, in this process; see `RowReader`."""
    while chunk := list(islice(rows, ROWS_AT_A_TIME)):
        yield read.columns(chunk, ledger)


def kept_rows_by_workers(rows: Rows, read: RowReader, ledger: Ledger, workers: int) -> Iterator[KeptRows]:
    """The same, made by `workers` processes.

    Args:
        rows: gives the rows, the same in every process.
        read, ledger: as for `RowReader`.
        workers: how many processes.

    Raises:
        DataError: a process ended without a word, as when memory runs out; else as `RowReader`.
    """
    read.get_ready()  # once, not in every process
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(workers)]
    started = []
    try:
        with warnings.catch_warnings():
            # Python >= 3.12 warns of threads of the parent; those of torch and tokenizers are not used by the children
            warnings.simplefilter("ignore", DeprecationWarning)
            for number, (_, send) in enumerate(pipes):
                process = context.Process(target=_work, args=(number, workers, rows, read, send), daemon=True)
                process.start()
                started.append(process)
                send.close()  # the child has its own; without this the end of a child would not be seen
        for number in count():
            found = _received(pipes[number % workers][0], started[number % workers])
            if found is None:
                return
            kept, own = found
            ledger.add(own)
            yield kept
    finally:
        for process in started:
            process.terminate()
            process.join()
        for receive, _ in pipes:
            receive.close()


def _received(pipe: Connection, process: Any) -> tuple[KeptRows, Ledger] | None:
    try:
        found = pipe.recv()
    except EOFError:
        process.join()
        raise DataError(
            f"A process that prepares data ended by itself (exit code {process.exitcode}).",
            fix="memory may have run out: use fewer workers",
        ) from None
    if isinstance(found, BaseException):
        raise found
    return found


def _work(number: int, workers: int, rows: Rows, read: RowReader, send: Connection) -> None:
    """Sends every `workers`-th chunk of rows, then None; or what went wrong."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive the fork
    try:
        iterator = rows()
        for place in count():
            chunk = list(islice(iterator, ROWS_AT_A_TIME))
            if place % workers == number:
                send.send(_read(place, chunk, read) if chunk else None)
            if not chunk:
                break
    except (KeyboardInterrupt, BrokenPipeError):
        pass  # the parent is told as well, or gone
    except BaseException as error:
        send.send(error)
    finally:
        send.close()


def _read(place: int, chunk: list[SourcedRow], read: RowReader) -> tuple[KeptRows, Ledger]:
    before = place * ROWS_AT_A_TIME
    ledger = Ledger(rows_in=before)  # the reader looks whether anything was read before
    kept = read.columns(chunk, ledger)
    ledger.rows_in -= before
    return kept, ledger
