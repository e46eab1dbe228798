"""Passes a value to another process, its arrays through a memory-mapped file."""

from __future__ import annotations

import mmap
import os
import pickle
from dataclasses import dataclass
from typing import IO, Any

_ALIGNMENT = 64  # bytes; enough for any numpy dtype


@dataclass(frozen=True, slots=True)
class Parcel:
    """The pickled value without its arrays, and the span of each array in the file."""

    rest: bytes
    spans: tuple[tuple[int, int], ...]


def put(value: Any, file: IO[bytes]) -> Parcel:
    """Appends the arrays of `value` to `file`; returns the rest of it."""
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    spans = []
    for buffer in buffers:
        raw = buffer.raw()
        file.write(bytes(-file.tell() % _ALIGNMENT))
        spans.append((file.tell(), file.tell() + raw.nbytes))
        file.write(raw)
    file.flush()
    return Parcel(rest, tuple(spans))


def take(parcel: Parcel, content: memoryview) -> Any:
    """Rebuilds the value; its arrays are views of `content`, the content of the file."""
    return pickle.loads(parcel.rest, buffers=[content[start:end] for start, end in parcel.spans])


def content_of(file: IO[bytes]) -> memoryview:
    """Everything written to the file; stays valid after the file is closed."""
    size = os.fstat(file.fileno()).st_size
    return memoryview(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)) if size else memoryview(b"")


def memory_file() -> IO[bytes]:
    """An unnamed file in memory that is freed when its last descriptor is closed."""
    return os.fdopen(os.memfd_create("honed"), "wb+")
