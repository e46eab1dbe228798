"""Ctrl-C in a command that trains: the first one saves and ends the run, the second stops it at once."""

from __future__ import annotations

import signal
import sys
import threading
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # the exit status that shells use for Ctrl-C
RETRY = 0.05  # seconds


@contextmanager
def saving_on_ctrl_c() -> Iterator[threading.Event]:
    """Yields an event that is set once Ctrl-C has requested a checkpoint.

    During training, SIGTERM makes a run save a checkpoint at the end of the step, so Ctrl-C is turned into SIGTERM.
    Before and after training there is nothing to save, and Ctrl-C stops the command as usual.
    """
    pressed = threading.Event()
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as with nohup
        yield pressed
        return
    before = signal.getsignal(signal.SIGTERM)

    def press(number: int, frame: Any) -> None:
        if pressed.is_set() or signal.getsignal(signal.SIGTERM) is before:
            raise KeyboardInterrupt
        pressed.set()
        print("\nhoned: the run is saved at the end of this step. Ctrl-C again stops it at once.", file=sys.stderr)
        signal.raise_signal(signal.SIGTERM)

    ignored = sys.unraisablehook

    def again(what: Any) -> None:
        if what.exc_type is not KeyboardInterrupt:
            ignored(what)
            return
        threading.Timer(RETRY, interrupt_main).start()

    signal.signal(signal.SIGINT, press)
    sys.unraisablehook = again  # Python ignores exceptions in finalizers, so a Ctrl-C there would be lost
    try:
        yield pressed
    finally:
        sys.unraisablehook = ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
