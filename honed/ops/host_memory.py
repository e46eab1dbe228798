"""Memory of the host that is given back is kept for the next step, instead of being asked for again.

glibc hands the end of its heap back to the system as soon as it is free, which after each backward pass it is. The
next step asks for it again, and the system clears each page when it is first touched: on the virtual machine at hand
that took a twentieth of a training step and more. A step needs what the one before needed, so nothing is gained.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# Options of glibc's mallopt(3), and the values at which its own adaptation ends.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
ADAPTED = ((MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, 64 << 20))
# Blocks of 32 MB and more go back to the system all the same: kept, their gaps raised the peak of a model with a large
# vocabulary by 13 %.
KEEPING = ((MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, 2**31 - 1))

_open: list[None] = []  # one for each block that is open now


@contextmanager
def kept_host_memory() -> Iterator[bool]:
    """Within the block the process keeps what it frees; afterwards the free memory is given back.

    Yields whether it does: other C libraries than glibc go on as they are. Blocks may be nested. The setting is the
    process's: all its threads keep what they free.
    """
    libc = _glibc()
    if libc is None:
        yield False
        return
    _open.append(None)
    _set(libc, KEEPING)
    try:
        yield True
    finally:
        _open.pop()
        if not _open:
            _set(libc, ADAPTED)
            libc.malloc_trim(0)


def _set(libc: Any, options: tuple[tuple[int, int], ...]) -> None:
    for option, value in options:
        libc.mallopt(option, value)


@cache
def _glibc() -> Any:
    """The process's C library, or None where it is not glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
