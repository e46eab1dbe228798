"""Who waits for whom in a run of several processes, and what they cannot do; tests/distributed trains with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from honed.errors import RecipeError, RunError
from honed.train.options.config import SFTConfig
from honed.train.run.ranks import RunRanks, check_ranks


def test_alone_there_is_nobody_to_wait_for(tmp_path: Path) -> None:
    ranks = RunRanks.of(SFTConfig(output_dir=str(tmp_path), use_cpu=True))
    with ranks.one_per_node_first():
        assert ranks.first


@pytest.mark.parametrize("local_rank", [0, 1])
def test_the_first_of_a_machine_goes_first(local_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr("torch.distributed.barrier", lambda group: steps.append("waits"))
    with RunRanks(rank=4 + local_rank, local_rank=local_rank, group=object()).one_per_node_first():
        steps.append("works")
    assert steps == (["waits", "works"] if local_rank else ["works", "waits"])


def test_the_end_of_another_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def barrier(group: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("torch.distributed.barrier", barrier)
    with pytest.raises(RunError, match="Another process"):
        RunRanks(rank=1, local_rank=1, group=object()).wait()


class Several:
    """Arguments of one process of two."""

    world_size, fsdp, deepspeed = 2, "", None


@pytest.mark.parametrize(
    ("engine", "asks", "fsdp", "says"),
    [("plain", False, "", "one process"), ("trainer", True, "full_shard", "is sharded over all of them")],
)
def test_what_several_processes_cannot_do(engine: str, asks: bool, fsdp: str, says: str) -> None:
    args: Any = Several()
    args.fsdp = fsdp
    with pytest.raises(RecipeError, match=says):
        check_ranks(args, engine=engine, asks=asks)


def test_accelerate_says_that_it_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    args: Any = Several()
    check_ranks(args, engine="trainer", asks=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_ranks(args, engine="trainer", asks=False)
    with pytest.raises(RecipeError, match="is sharded over all of them"):
        check_ranks(args, engine="trainer", asks=True)
