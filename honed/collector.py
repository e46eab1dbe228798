"""Python's garbage collector, kept from walking again and again over what is there to stay.

Importing torch and transformers makes a million objects that live as long as the process, and preparing data as many
rows. By default all of them are looked at each time their number has grown by a quarter: a third of an import's time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fewer_collections() -> Iterator[None]:
    """For work that makes many objects and little garbage."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def no_collections() -> Iterator[None]:
    """For imports, which make next to no garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def set_aside() -> Iterator[None]:
    """Objects that exist now are not examined by collections within the block. For use right after imports.

    Use it once per command, not for many small things: Python counts the frozen objects one by one. Garbage among
    them is not freed meanwhile.
    """
    is_ours = gc.get_freeze_count() == 0
    gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()
