"""Ranks that start from other rows, settings or weights than the first are refused before they wait for each other."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from program import make_model
from test_engines import FSDP, SAVES, same_steps, same_weights

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Ranks


@pytest.mark.parametrize(
    ("differs", "train", "says"),
    [
        ({"rows": 6}, {}, "the training rows are '8 with "),
        ({"eval_rows": 3}, {}, "the evaluation rows are '5 with "),
        ({"train": {"seed": 1}}, {}, "seed is 0 on rank 0 and 1 on rank 1"),
        ({"model": {"initializer_range": 0.2}}, FSDP, "the weights are "),
    ],
    ids=["rows", "eval-rows", "seed", "weights"],
)
def test_another_start_is_refused(differs: dict[str, Any], train: dict[str, Any], says: str, ranks: Ranks) -> None:
    ended = ranks(f"start-{says[4:9]}", eval_rows=5, train=train, second=differs)
    assert ended.statuses == [2, 2]
    for rank in range(2):
        assert "do not start alike" in ended.err(rank) and says in ended.err(rank)
        assert "fix: " in ended.err(rank) and "Traceback" not in ended.err(rank)


def test_ddp_takes_the_first_rank_s_weights(ranks: Ranks) -> None:
    """So it does not matter what the others have."""
    found = ranks("other-weights", second={"model": {"initializer_range": 0.2}})
    same_weights(found, ranks("same-weights"), 0.0)


def test_memory_that_one_rank_lacks_is_told(ranks: Ranks) -> None:
    """A step is not done again in smaller micro-batches: all ranks must do as many passes."""
    ended = ranks("memory", second={"lacks_memory": True}, limit=60)
    assert ended.statuses == [2, 2]
    assert "does not fit into memory on rank 1 with" in ended.err(1) and "per_device_train_batch_size" in ended.err(1)
    assert "Traceback" not in ended.err(1)
    assert "Another process of this run has ended" in ended.err(0)


def test_an_adapter_s_run_goes_on_where_only_the_first_rank_loads(ranks: Ranks, tmp_path: Path) -> None:
    """The others hold zeros, by which they cannot tell whose a checkpoint is: the first one says it."""
    make_model().save_pretrained(tmp_path)
    sharded = {"fsdp": True, "fsdp_config": {"cpu_ram_efficient_loading": True}}
    told = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    job: dict[str, Any] = {"base": str(tmp_path), "lora": True, "env": told, "train": {**sharded, **SAVES}}
    whole = ranks("first-loads", **job)
    same_steps(whole, ranks("each-loads", base=str(tmp_path), lora=True))
    shutil.copytree(whole.out / "checkpoint-1", tmp_path / "on" / "checkpoint-1")
    resumed = ranks("goes-on", out=tmp_path / "on", resume="auto", **job)
    assert "resuming from checkpoint-1" in resumed.err(0) and "going on" not in resumed.err(1)
    same_steps(resumed, whole)
    same_weights(resumed, whole)
