"""What ends a distributed run, and what does not: a rank that dies, and one that works for long."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from honed.train.run_folder.checkpoint import latest_good

if TYPE_CHECKING:
    from conftest import Ranks

SAVES = {"save_strategy": "steps", "save_steps": 1}


def test_a_rank_that_dies_ends_the_run(ranks: Ranks) -> None:
    """The other says so at once; the checkpoint of the step before is whole, and leads to the same weights."""
    died = ranks("died", dies={"step": 2, "rank": 1}, train=SAVES, limit=60)
    assert died.statuses == [2, -signal.SIGKILL]
    assert "Another process of this run has ended" in died.err(0) and "fix: " in died.err(0)
    assert "Traceback" not in died.err(0)
    newest, notes = latest_good(died.out)
    assert newest == died.out / "checkpoint-1" and notes == []

    resumed = ranks("died", out=died.out, train=SAVES, resume="auto")
    whole = ranks("whole", train=SAVES)
    assert "resuming from checkpoint-1" in resumed.err(0)
    assert all(bool((resumed.weights()[name] == tensor).all()) for name, tensor in whole.weights().items())


def test_sigterm_to_one_rank_saves_and_ends_all(ranks: Ranks) -> None:
    """With status 0, by the script's own trainer; what goes on has the weights of the run that was not stopped."""
    stopped = ranks("stopped", rows=12, dies={"step": 2, "rank": 1, "by": signal.SIGTERM}, limit=60)
    assert stopped.statuses == [0, 0] and not (stopped.out / "model").exists()
    assert "Stopped at step 2 and saved" in stopped.err(0) and "Stopped" not in stopped.err(1)
    assert latest_good(stopped.out) == (stopped.out / "checkpoint-2", [])
    resumed, whole = ranks("stopped", rows=12, out=stopped.out, resume="auto"), ranks("unstopped", rows=12)
    assert all(bool((resumed.weights()[name] == tensor).all()) for name, tensor in whole.weights().items())


def test_data_that_take_long_hold_no_time_limit(ranks: Ranks) -> None:
    """The first rank works for three seconds, and the group that trains gives up after one."""
    assert ranks("slow", rows=2, slow=3, train={"ddp_timeout": 1}).statuses == [0, 0]
