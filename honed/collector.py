"""Context managers that keep Python's garbage collector from scanning long-lived objects again and again.

Importing torch and transformers creates a million objects that live as long as the process; preparing data creates a
similar number. By default, the collector scans all of them each time their number has grown by a quarter: a third of
an import's time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fewer_collections() -> Iterator[None]:
    """For work that creates many objects and little garbage."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def no_collections() -> Iterator[None]:
    """For imports, which create almost no garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def set_aside() -> Iterator[None]:
    """Excludes objects that exist now from collections within the block. For use right after imports.

    Use it once per command, not for many small steps: Python counts the frozen objects one by one. Garbage among
    them is not freed until the block ends.
    """
    is_ours = gc.get_freeze_count() == 0
    gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()
