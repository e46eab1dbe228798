"""Ctrl-C where no run trains: as ever, but never lost."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from honed.cli.interrupts import saving_on_ctrl_c


class Ends:
    """Ctrl-C comes while the object ends, where Python ignores every exception."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    ctrl_c, sigterm = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, ctrl_c)
    signal.signal(signal.SIGTERM, sigterm)


def test_nothing_to_save() -> None:
    with pytest.raises(KeyboardInterrupt), saving_on_ctrl_c() as pressed:
        signal.raise_signal(signal.SIGINT)
    assert not pressed.is_set() and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_is_not_lost_in_an_object_that_ends() -> None:
    with pytest.raises(KeyboardInterrupt), saving_on_ctrl_c():
        Ends()
        gc.collect()
        time.sleep(10)


def test_a_run_that_listens_is_asked_once_and_then_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []
    with pytest.raises(KeyboardInterrupt), saving_on_ctrl_c() as pressed:
        signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
        signal.raise_signal(signal.SIGINT)
        assert pressed.is_set() and asked == [signal.SIGTERM]
        signal.raise_signal(signal.SIGINT)
    assert asked == [signal.SIGTERM] and capsys.readouterr().err.count("saved at the end of this step") == 1


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_a_handler_of_somebody_else_stays(handler: signal._HANDLER) -> None:
    signal.signal(signal.SIGINT, handler)
    with saving_on_ctrl_c():
        assert signal.getsignal(signal.SIGINT) is handler
    assert signal.getsignal(signal.SIGINT) is handler


def test_other_threads_have_no_handlers() -> None:
    seen = []

    def run() -> None:
        with saving_on_ctrl_c() as pressed:
            seen.append((signal.getsignal(signal.SIGINT), pressed.is_set()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(signal.default_int_handler, False)]
