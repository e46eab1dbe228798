"""Streams in training: the same batches for any number of ranks and workers, and after a resumption."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from honed.data.batch.collate import FlatCollator
from honed.data.prepare import stream as streams
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.stream import RowStream
from honed.errors import RecipeError, RunError
from honed.train.options.config import SFTConfig
from honed.train.rows.stream import StreamDataset, StreamLoader, is_streamed, place_to_resume
from honed.train.trainer.trainer import SFTTrainer

# on one core two workers are one too many for torch
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK", 5)


@pytest.fixture
def stream(tiny_tokenizer: Any, chat_rows: Rows) -> RowStream:
    return RowStream(chat_rows, tiny_tokenizer, PrepareOptions(max_length=128, packing=True), shuffle_buffer=10)


def ids(loader: Any, count: int) -> list[list[int]]:
    found = islice(iter(loader), count)
    return [batch["input_ids"][0].tolist() for batch in found]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 3)])
def test_the_sequence_is_one_however_many_read_it(stream: RowStream, world: int, workers: int) -> None:
    expected = ids(StreamLoader(StreamDataset(stream, 2, FlatCollator())), 12)
    assert len({str(batch) for batch in expected}) > 6
    readers = [StreamDataset(stream, 2, FlatCollator(), rank=rank, world=world) for rank in range(world)]
    found = [ids(StreamLoader(reader, num_workers=workers), 12 // world) for reader in readers]
    assert [batch for step in zip(*found, strict=True) for batch in step] == expected


def test_rows_in_memory_need_no_datasets_package(
    chat_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = SFTConfig(output_dir=str(tmp_path), max_steps=1, use_cpu=True)
    assert is_streamed(datasets.IterableDataset.from_generator(lambda: iter(chat_rows)), args)
    monkeypatch.setitem(sys.modules, "datasets", None)  # an import of it fails
    assert not is_streamed(chat_rows, args)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_read_all_shards_of_a_data_set_that_streams_itself(
    tiny_tokenizer: Any, chat_rows: Rows, workers: int
) -> None:
    """`datasets` would give each worker shards of its own, of which it then took every n-th batch only."""
    rows = datasets.Dataset.from_list(chat_rows).to_iterable_dataset(num_shards=2)
    stream = RowStream(rows, tiny_tokenizer, PrepareOptions(max_length=128), shuffle_buffer=0)
    listed = RowStream(chat_rows, tiny_tokenizer, PrepareOptions(max_length=128), shuffle_buffer=0)
    expected = ids(StreamLoader(StreamDataset(listed, 2, FlatCollator())), 8)
    assert ids(StreamLoader(StreamDataset(stream, 2, FlatCollator()), num_workers=workers), 8) == expected


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (2, 2)])
def test_each_rank_goes_on_after_the_place_of_the_first(stream: RowStream, world: int, workers: int) -> None:
    expected = ids(StreamLoader(StreamDataset(stream, 2, FlatCollator())), 14)
    first = StreamLoader(StreamDataset(stream, 2, FlatCollator(), world=world))
    ids(first, 3)  # three steps
    rest = []
    for rank in range(world):
        dataset = StreamDataset(stream, 2, FlatCollator(), rank=rank, world=world, after=first.place)
        rest.append(ids(StreamLoader(dataset, num_workers=workers), 2))
    assert [batch for step in zip(*rest, strict=True) for batch in step] == expected[3 * world : 5 * world]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 2), (2, 4)])
def test_another_number_of_ranks_goes_on_with_the_next_batch(stream: RowStream, before: int, after: int) -> None:
    """None is trained twice, and none is left out; as many as 8 were trained."""
    expected = ids(StreamLoader(StreamDataset(stream, 2, FlatCollator())), 16)
    first = StreamLoader(StreamDataset(stream, 2, FlatCollator(), world=before))
    ids(first, 8 // before)
    rest = [
        StreamDataset(stream, 2, FlatCollator(), rank=rank, world=after, after=first.place, world_before=before)
        for rank in range(after)
    ]
    found = [ids(StreamLoader(dataset), 8 // after) for dataset in rest]
    assert [batch for step in zip(*found, strict=True) for batch in step] == expected[8:]


@pytest.fixture
def make(tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., SFTTrainer]:
    def make_trainer(rows: Any, **changes: Any) -> SFTTrainer:
        options: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"), "use_cpu": True, "report_to": "none", "save_strategy": "no",
            "max_length": 128, "logging_steps": 1, "disable_tqdm": True, "learning_rate": 0.01, "max_steps": 6,
            "per_device_train_batch_size": 2, "shuffle_buffer": 10, "lr_scheduler_type": "constant",
        }  # fmt: skip
        args = SFTConfig(**{**options, **changes})
        return SFTTrainer(tiny_model(), args=args, train_dataset=rows, processing_class=tiny_tokenizer)

    return make_trainer


def losses(trainer: SFTTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_a_stream_trains_and_counts(make: Callable[..., SFTTrainer], chat_rows: Rows) -> None:
    trainer = make(datasets.Dataset.from_list(chat_rows).to_iterable_dataset())
    assert trainer.ledger is None
    trainer.train()
    assert trainer.state.global_step == 6 and len(losses(trainer)) == 6
    assert trainer.ledger is not None and trainer.ledger.rows_trained == len(chat_rows)
    again = make(chat_rows, streaming=True)
    again.train()
    assert losses(again) == losses(trainer)
    workers = make(chat_rows, streaming=True, dataloader_num_workers=2)
    workers.train()
    assert losses(workers) == losses(trainer)


@pytest.mark.parametrize("changes", [{}, {"packing": True, "gradient_accumulation_steps": 2}])
def test_a_resumed_run_is_the_run_that_never_stopped(
    make: Callable[..., SFTTrainer], chat_rows: Rows, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = make(chat_rows, streaming=True, **changes)
    whole.train()
    make(chat_rows, streaming=True, save_strategy="steps", save_steps=4, **changes).train()
    checkpoint = tmp_path / "out" / "checkpoint-4"
    batches = 4 * changes.get("gradient_accumulation_steps", 1)
    assert json.loads((checkpoint / "position.json").read_text())["position"]["stream"]["batch"] == batches - 1
    resumed = make(chat_rows, streaming=True, **changes)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed)[-2:] == losses(whole)[-2:]
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_stream_needs_an_end_and_a_place_to_go_on(
    make: Callable[..., SFTTrainer], chat_rows: Rows, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="number of streamed rows is unknown"):
        make(chat_rows, streaming=True, max_steps=-1)
    assert place_to_resume(None) is None
    with pytest.raises(RunError, match="does not record its position in the stream"):
        place_to_resume(str(tmp_path))


def test_no_loader_of_torch_is_needed_to_read_one(stream: RowStream) -> None:
    """The dataset alone, as another trainer might use it."""
    items = list(islice(DataLoader(StreamDataset(stream, 2, FlatCollator()), batch_size=None), 2))
    assert [place.batch for place, _, _ in items] == [0, 1]
