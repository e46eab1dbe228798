"""Slices of rows, without other processes; what ranks compute of them: tests/distributed/test_shared_rows.py."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from honed.data.batch.collate import FlatCollator
from honed.data.batch.table import PackedRow
from honed.errors import RecipeError
from honed.loss.objective import targets_of, total_weight
from honed.train.forward.checkpointing import largest_batch
from honed.train.forward.seams import Seams
from honed.train.forward.sequence_parallel import SlicingCollator, check, collator_of, share_rows, slice_of
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer


@st.composite
def packed_rows(draw: st.DrawFn) -> PackedRow:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    weights = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=sum(lengths), max_size=sum(lengths)))
    for start in (0, *list(accumulate(lengths))[:-1]):
        weights[start] = 0.0
    return PackedRow(
        input_ids=np.arange(sum(lengths)) + 5, weights=np.array(weights, dtype=np.float32), lengths=tuple(lengths)
    )


@given(row=packed_rows(), ranks=st.integers(1, 5))
def test_each_token_of_a_row_is_scored_by_one_rank_and_counted_once(row: PackedRow, ranks: int) -> None:
    whole = FlatCollator(multiple_of=ranks)([row])
    parts = [slice_of(whole, rank, ranks) for rank in range(ranks)]
    width = whole["input_ids"].shape[1] // ranks
    found = []
    for rank, part in enumerate(parts):
        assert part["input_ids"].shape == part["position_ids"].shape == (1, width)
        targets = targets_of(part["labels"], part["loss_weights"], count=part["num_targets"])
        assert bool((targets.index_N < width).all())  # the head sees the slice's positions only
        found += list(zip((targets.index_N + rank * width).tolist(), targets.ids_N.tolist(), targets.weights_N.tolist(),
                          strict=True))  # fmt: skip
    wanted = targets_of(whole["labels"], whole["loss_weights"])
    assert found == list(zip(*(x.tolist() for x in (wanted.index_N, wanted.ids_N, wanted.weights_N)), strict=True))
    for name in ("input_ids", "position_ids"):
        assert torch.equal(torch.cat([part[name] for part in parts], dim=1), whole[name])
    assert sum(part["num_tokens"] for part in parts) == len(row.input_ids)
    weights = [total_weight(part["labels"], part["loss_weights"]) for part in parts]
    assert sum(weights) == total_weight(whole["labels"], whole["loss_weights"])
    assert all(part["cu_seq_lens_q"] is whole["cu_seq_lens_q"] for part in parts)


Rank = Callable[..., SFTConfig]


@pytest.fixture
def of_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rank:
    """Arguments as a rank has them that shares rows with its neighbour."""

    def make(rank: int, world: int) -> SFTConfig:
        monkeypatch.setattr(SFTConfig, "world_size", world)
        monkeypatch.setattr(SFTConfig, "process_index", rank)
        return SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", sequence_parallel_size=2)

    return make


def test_neighbours_share_rows_and_groups_do_not(of_rank: Rank) -> None:
    for rank in range(6):
        args = of_rank(rank, 6)
        assert (args.data_parallel_rank, args.data_parallel_size) == (rank // 2, 3)
        made = collator_of(args, multiple_of=3, pad_token_id=7)
        assert made == SlicingCollator(rank=rank % 2, ranks=2, multiple_of=6, pad_token_id=7)
        shard = SimpleNamespace(num_processes=6, process_index=rank)
        share_rows(SimpleNamespace(batch_sampler=shard), 2)
        assert largest_batch(None, args) == (args.per_device_train_batch_size * 512, args.per_device_train_batch_size)
        assert (shard.process_index, shard.num_processes) == (rank // 2, 3)


EXPERTS = {"num_local_experts": 2, "router_aux_loss_coef": 0.1}


@pytest.mark.parametrize(
    ("family", "custom_parts", "told"),
    [("llama", True, "would get slices of rows"), ("mixtral", False, "router's auxiliary loss")],
)
def test_what_slices_do_not_have_is_refused(
    family: str, custom_parts: bool, told: str, tiny_model: Any, of_rank: Rank
) -> None:
    model = tiny_model(family, **(EXPERTS if family == "mixtral" else {}))
    with pytest.raises(RecipeError, match=told):
        check(of_rank(0, 2), model, Seams(flat=True), custom_parts=custom_parts)


class ReadsBatches(SFTTrainer):
    takes_flat_batches = True

    def compute_loss(self, model: Any, inputs: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        raise AssertionError("slices reached it")


def test_a_subclass_that_reads_batches_is_refused(tiny_model: Any, tiny_tokenizer: Any, of_rank: Rank) -> None:
    with pytest.raises(RecipeError, match="ReadsBatches reads batches, but sequence_parallel_size"):
        ReadsBatches(tiny_model(), of_rank(0, 2), None, [{"text": "fox"}], None, tiny_tokenizer)
