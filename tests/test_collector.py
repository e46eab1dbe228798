"""The collector is as it was before, whatever happened inside."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from honed.cli.main import main
from honed.collector import fewer_collections, no_collections, set_aside

State = tuple[bool, tuple[int, int, int], int]


class Knot:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _nothing_set_aside() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def state() -> State:
    return gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()


@pytest.mark.parametrize("context", [fewer_collections, no_collections, set_aside])
@pytest.mark.parametrize("fails", [False, True])
def test_the_collector_is_as_before(context: type, fails: bool) -> None:
    before = state()
    try:
        with context():
            assert state() != before
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert state() == before


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with no_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_set_aside_is_collected_afterwards() -> None:
    knot = Knot()
    gone = weakref.ref(knot)
    with set_aside():
        del knot
        gc.collect()
        assert gone() is not None
    gc.collect()
    assert gone() is None


def test_what_the_caller_set_aside_stays_there() -> None:
    gc.freeze()
    with set_aside():
        pass
    assert gc.get_freeze_count()


def test_a_command_leaves_the_collector_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    before = state()
    assert main(["train", "model=no/such/folder", "data.files=no-such.jsonl", "--output", "/dev/null/x"]) == 2
    assert capsys.readouterr().err and state() == before


def test_a_public_name_is_imported_without_collections() -> None:
    """In a fresh interpreter; the names of the trainer bring most of what takes long."""
    program = (
        "import gc; seen = []; gc.callbacks.append(lambda phase, info: seen.append(info['generation']))\n"
        "from honed import SFTTrainer; assert gc.isenabled(); print(seen.count(2))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) <= 2, "collections of the oldest generation; importing transformers alone makes a dozen"
