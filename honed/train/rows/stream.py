"""Streams for the trainer: ranks and workers share the batches, and checkpoints store the position."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from honed.data.ledger import Ledger
from honed.data.prepare.stream import Place, RowStream
from honed.errors import RecipeError, RunError
from honed.train.options.config import SFTConfig
from honed.train.ranks import keep_on_sigterm
from honed.train.run_folder import checkpoint
from honed.train.run_folder.other_ranks import readers


class StreamDataset(IterableDataset):
    """Batches of a stream for one rank, shared among the workers of its DataLoader.

    Batch b of the whole sequence belongs to rank b mod `world`; a rank's batches go to its workers in turn, the order
    in which a DataLoader asks for them. Items are (place, ledger so far, batch).

    Args:
        size: packed rows per batch.
        after: the place of rank 0's last trained batch; None to start at the beginning.
        world_before: the number of ranks that read up to there, if different from today's.
    """

    def __init__(
        self,
        stream: RowStream,
        size: int,
        collate: Callable[[list[Any]], dict[str, Any]],
        *,
        rank: int = 0,
        world: int = 1,
        after: Place | None = None,
        world_before: int | None = None,
    ) -> None:
        self.stream, self.size, self.collate = stream, size, collate
        self.rank, self.world, self.after = rank, world, after
        self.world_before = world_before or world

    def __iter__(self) -> Iterator[tuple[Place, Ledger, dict[str, Any]]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        first = 0 if self.after is None else self.after.batch + self.world_before
        readers, block = self.world * workers, (-1, -1)
        ledger = Ledger()
        for place, rows in self.stream.batches(self.size, self.after):
            if place.batch < first or (place.batch - first) % readers != self.rank + self.world * worker:
                continue
            if (place.epoch, place.block) != block:
                block, ledger = (place.epoch, place.block), copy.deepcopy(self.stream.ledger)
            yield place, ledger, self.collate(rows)


class StreamLoader:
    """A DataLoader over a `StreamDataset` that keeps track of its position.

    Attributes:
        place: the position of the last batch returned.
        ledger: the rows read up to there since the run began or was resumed.
    """

    def __init__(self, dataset: StreamDataset, **options: Any) -> None:
        self.dataset = dataset
        self._loader = DataLoader(dataset, batch_size=None, collate_fn=_as_is, **options)
        self.place: Place | None = None
        self.ledger = Ledger()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for place, ledger, batch in self._loader:
            self.place, self.ledger = place, ledger
            yield batch


def is_streamed(data: Any, args: SFTConfig) -> bool:
    """Whether the training rows are streamed, because of the options or because the dataset itself is a stream.

    Raises:
        RecipeError: they are streamed without an option that says when to stop.
    """
    if not args.streaming and not _streams_itself(data):
        return False
    if args.max_steps < 1:
        raise RecipeError(
            "The number of streamed rows is unknown, so an epoch has no known length.",
            fix="set max_steps" if args.streaming else "set max_steps, or pass a dataset that is not streamed",
        )
    return True


def loader_of(dataset: StreamDataset, args: SFTConfig, *, size: int, after: tuple[Place, int] | None) -> StreamLoader:
    """Returns this rank's loader; `size` as in `StreamDataset`, `after` from `place_to_resume`."""
    workers = args.dataloader_num_workers
    rank, world = args.data_parallel_rank, args.data_parallel_size
    place, before = after or (None, world)
    own = StreamDataset(dataset.stream, size, dataset.collate, rank=rank, world=world, after=place, world_before=before)
    return StreamLoader(
        own,
        num_workers=workers,
        worker_init_fn=keep_on_sigterm,
        generator=torch.Generator(),  # else it draws from dropout's generator
        pin_memory=args.dataloader_pin_memory,
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
    )


def _streams_itself(data: Any) -> bool:
    """Checks for `datasets`' types only if the library is imported; otherwise no object can have them."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(data, datasets.IterableDataset)


def place_to_resume(resume: str | None) -> tuple[Place, int] | None:
    """Returns the position in a checkpoint's stream and the number of ranks that read it; None without a checkpoint.

    Raises:
        RunError: the checkpoint has no such position.
    """
    if not resume:
        return None
    position, identity = checkpoint.read_position(resume)
    place = position.get("stream")
    if place is None:
        raise RunError(
            f"{resume} does not record its position in the stream.",
            fix="resume from a checkpoint of a streaming run, or start over",
        )
    return Place(**place), readers(identity)


def _as_is(item: Any) -> Any:
    return item
