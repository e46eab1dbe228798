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
    """For work that makes many objects and little garbage. What was set aside meanwhile is so no longer afterwards."""
    before, aside = gc.get_threshold(), gc.get_freeze_count()
    gc.set_threshold(50_000, 20, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if gc.get_freeze_count() and not aside:
            gc.unfreeze()


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


def set_imports_aside() -> None:
    """No collection looks at what is there now. For right after imports: garbage that is there now stays.

    Only within `fewer_collections`, at whose end it is undone.
    """
    gc.freeze()
