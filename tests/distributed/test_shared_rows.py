"""Ranks that share rows (`sequence_parallel_size`) train what one process does.

Options in combination: `test_combinations_of_ranks.py`. The ranks' own part: `sequences.py`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from test_engines import ALONE, FSDP, SAVES, same_run, same_steps, same_weights, settings

from tests.train.test_combinations import FAMILIES

if TYPE_CHECKING:
    from conftest import Ended, Ranks

SHARED = {"sequence_parallel_size": 2, "gradient_accumulation_steps": 4}


def far(ended: Ended) -> list[dict[str, dict[str, float]]]:
    """What each rank measured."""
    assert not any(ended.statuses), ended.err(0) + ended.err(1)
    return [json.loads((ended.out / f"far-{rank}.json").read_text()) for rank in range(len(ended.statuses))]


def test_attention_is_that_of_the_whole_row(ranks: Ranks) -> None:
    """Four ranks: heads of their own, fewer key/value heads than ranks, and numbers that do not divide."""
    heads = [(8, 8), (8, 4), (8, 2), (4, 1), (12, 3), (12, 6)]
    for rank in far(ranks("sp-attention", world=4, sequences={"heads": heads})):
        assert len(rank) == 30
        for name, apart in rank.items():
            assert len(apart) == (5 if "sinks" in name else 4)
            assert max(apart.values()) <= 1e-13, (name, apart)


def test_gradients_of_models_are_those_of_the_whole_row(ranks: Ranks) -> None:
    """In float64. What forward keeps for backward is about half on each of two ranks."""
    for rank in far(ranks("sp-models", sequences={"models": list(FAMILIES)})):
        assert rank.keys() == FAMILIES.keys()
        for name, apart in rank.items():
            assert 0.4 < apart.pop("saved bytes") < 0.6, name
            assert len(apart) > 10
            for what, distance in apart.items():
                float32 = "norm" in what and name in ("capped", "windows", "scaled")  # which is theirs inside of a norm
                assert distance <= (1e-6 if float32 else 1e-13), (name, what)


@pytest.fixture(scope="module")
def alone(ranks: Ranks) -> Ended:
    """One process, with a checkpoint after each step."""
    return ranks("sp-alone", world=1, **settings({**ALONE, **SAVES}))


@pytest.mark.parametrize("engine", [{}, FSDP], ids=["ddp", "fsdp2"])
def test_two_ranks_share_all_rows(engine: dict[str, Any], alone: Ended, ranks: Ranks) -> None:
    same_run(ranks(f"sp-{len(engine)}", **settings({**SHARED, **engine})), alone)


def test_two_groups_of_two(alone: Ended, ranks: Ranks) -> None:
    """The weights in four parts, the rows in two slices."""
    train = {**SHARED, **FSDP, "gradient_accumulation_steps": 2}
    same_run(ranks("sp-groups", world=4, **settings(train)), alone)


def test_lora_with_checkpointing(ranks: Ranks) -> None:
    wanted = ranks("sp-lora-alone", world=1, lora=True, **settings(ALONE))
    found = ranks("sp-lora", lora=True, **settings({**SHARED, **FSDP, "gradient_checkpointing": True}))
    same_run(found, wanted, 5e-6)  # float32 sums over slices are rounded elsewhere, and the adapter begins at 0


def test_rows_that_do_not_fill_the_last_step(ranks: Ranks) -> None:
    """Five rows for two groups under DDP: in the second step one group has a row, the other none."""
    train = {**SHARED, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    found = ranks("sp-uneven", world=4, rows=5, train=train)
    wanted = ranks("sp-uneven-alone", world=1, rows=5, train={**train, **ALONE, "sequence_parallel_size": 1})
    same_steps(found, wanted)
    same_weights(found, wanted)


def test_a_checkpoint_is_gone_on_from(alone: Ended, ranks: Ranks) -> None:
    """By ranks that share rows, from their own and from that of one process."""
    first = ranks("sp-saved", **settings({**SHARED, **SAVES}))
    for name, place in (("own", first), ("other", alone)):
        checkpoint = place.out / "checkpoint-1"
        found = ranks(f"sp-resumed-{name}", resume=str(checkpoint), **settings(SHARED))
        assert found.steps()[-1]["num_tokens"] == alone.steps()[-1]["num_tokens"]
        same_weights(found, alone)
        assert ("sequence_parallel_size is None there, 2 here" in found.err(0)) == (name == "other")


def test_a_model_that_mixes_tokens_outside_of_attention_is_found_out(ranks: Ranks) -> None:
    found = ranks("sp-mixes", mixes=True, train=SHARED)
    assert found.statuses == [2, 2]
    assert all("scores slices of a row differently from the whole row" in found.err(rank) for rank in (0, 1))


@pytest.mark.parametrize(
    ("name", "world", "job", "told"),
    [
        ("heads", 3, {"train": {"sequence_parallel_size": 3}}, "2 attention heads, which 3 processes cannot share"),
        ("ranks", 2, {"train": {"sequence_parallel_size": 3}}, "must be a multiple of it"),
        ("padded", 2, {"train": SHARED, "model": {"attn_implementation": "eager"}}, "needs honed's attention"),
        ("positions", 2, {"train": SHARED, "model": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0,
         "rope_theta": 1e4}, "max_position_embeddings": 32}}, "Slices of a row would have their own positions"),
    ],
)  # fmt: skip
def test_what_is_refused(name: str, world: int, job: dict[str, Any], told: str, ranks: Ranks) -> None:
    found = ranks(f"sp-refused-{name}", world=world, **job)
    assert found.statuses == [2] * world
    assert told in found.err(0)
