"""Which rows SFTTrainer trains on, in which order and on which rank."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

from transformers import Trainer

from honed.data.batch.table import PackedRows
from honed.data.prepare.stream import Place
from honed.train.options.rule import order_is_fixed
from honed.train.ranks import keep_workers
from honed.train.rows import filling, stream, token_batches
from honed.train.rows.rows import TOKEN_COLUMNS, Datasets, GroupedByLength


class LoadingTrainer(Trainer):
    """transformers' Trainer with honed's training batches; `SFTTrainer` sets the attributes without a value.

    Attributes:
        stream_loader: the loader of streamed rows, once there is one.
    """

    args: Any
    data_collator: Any
    stream_loader: stream.StreamLoader | None = None
    _datasets: Datasets
    _has_loss_func: bool  # whether the caller gives `compute_loss_func`
    _stream_after: tuple[Place, int] | None = None  # where a stream is resumed
    _at: tuple[int, Any, int] | None = None  # epoch, its loader, steps per epoch

    def get_train_dataloader(self) -> Any:
        """The batches of this rank; a stream deals them out itself, without accelerate."""
        if not isinstance(self.train_dataset, stream.StreamDataset):
            return keep_workers(self._rows_loader())
        size, after = self._train_batch_size, self._stream_after
        self.stream_loader = stream.loader_of(self.train_dataset, self.args, size=size, after=after)
        return self.stream_loader

    def _rows_loader(self) -> Any:
        """Batches of rows; accelerate deals them to the ranks, and the last round is filled up with empty rows."""
        rows, collate, size = self.train_dataset, self.data_collator, self._train_batch_size
        if self.args.tokens_per_step is not None:
            return token_batches.loader_of(rows, self._datasets.collator, self.args, size=size)
        if self.args.world_size == 1 or not self._fills_rounds():
            return super().get_train_dataloader()
        self.data_collator = filling.FilledCollator(collate=collate, untrained=filling.untrained_row(rows))
        try:
            loader = self._get_dataloader(
                filling.FilledRows(rows),
                description="Training",
                batch_size=size,
                sampler_fn=lambda _: self._get_train_sampler(rows),
                is_training=True,
            )
        finally:
            self.data_collator = collate
        filling.fill_up(loader)
        return loader

    def _fills_rounds(self) -> bool:
        return not self._has_loss_func and filling.can_fill(self.train_dataset, self.data_collator)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(rows, PackedRows):
            return super()._get_train_sampler(train_dataset)
        args = self.args
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.data_parallel_size
        return GroupedByLength(rows, per_step, seed=args.order_seed)

    def _set_signature_columns_if_needed(self) -> None:
        # prepared rows have no columns; of unprepared rows, collators get the token columns, or all if there are none
        columns = list(getattr(self.train_dataset, "column_names", None) or [])
        tokenised = "input_ids" in columns
        self._signature_columns = [name for name in columns if not tokenised or name in TOKEN_COLUMNS]

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        return data_collator

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._at = (kwargs["epoch"], kwargs["train_dataloader"], kwargs["num_update_steps_per_epoch"])
        super()._run_epoch(*args, **kwargs)

    def rows_of(self, step: int) -> list[list[int]] | None:
        """Returns the indices of the prepared rows in each micro-batch of a step on this rank.

        Args:
            step: counted from 1, as in the log.

        Returns:
            None if the rows have no indices (streamed, or not prepared by honed), or if their order was not fixed.
        """
        numbered = isinstance(self.train_dataset, PackedRows) and not self.args.ignore_data_skip
        if self._at is None or not numbered or not order_is_fixed(self.args):
            return None
        _, loader, steps = self._at
        epoch, number = divmod(step - 1, steps)
        loader.set_epoch(epoch)
        size = self.args.gradient_accumulation_steps
        batches: Iterable[list[Any]] = islice(loader.batch_sampler, number * size, (number + 1) * size)
        found = [list(chain.from_iterable(batch) if isinstance(batch[0], list) else batch) for batch in batches]
        loader.set_epoch(self._at[0])
        return [[row for row in batch if row < len(self.train_dataset)] for batch in found]  # see `filling`
