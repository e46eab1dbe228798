"""Converts the caller's datasets into what the trainer's data loaders read."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from honed.data.batch.collate import Batch, FlatCollator, PaddedCollator
from honed.data.batch.completion_collator import DataCollatorForCompletionOnlyLM
from honed.data.batch.row_columns import ByColumn
from honed.data.batch.table import PackedRow, PackedRows
from honed.data.example import RowError, Source
from honed.data.ledger import Ledger
from honed.data.mix.mixture import Mixture
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import Prepared
from honed.data.prepare.reader import CUT_AT_THE_END, NOTHING_FITS, SPLIT_INTO_PARTS, VIEWS_DROPPED
from honed.data.prepare.stream import RowStream
from honed.data.read.formats import FORMATS, ReadOptions
from honed.data.read.sources import SourcedRows, read_rows
from honed.data.vision.prepare import VisionPrepared, VisionRows
from honed.errors import DataError, RecipeError
from honed.quantities import counted
from honed.train.forward import sequence_parallel, vision
from honed.train.options.config import SFTConfig
from honed.train.rows import stream
from honed.train.rows.ahead import has_ids, has_transform, prepare_rows, unprepared
from honed.train.rows.notes import notes_on_user_turns

Collator = Callable[[list[Any]], dict[str, Any]]

# The keys of tokenised rows that are passed to collators, as in TRL.
TOKEN_COLUMNS = ("input_ids", "labels", "attention_mask", "position_ids", "token_type_ids", "completion_mask",
                 "assistant_masks", "loss_mask", "seq_lengths")  # fmt: skip

# What the length policy did to rows, and the alternatives.
_CUTS = {
    CUT_AT_THE_END: "their ends are cut off. Raise max_length, or set overlong='drop'.",
    SPLIT_INTO_PARTS: "they are split into parts that do not see each other. Raise max_length to keep them whole.",
    VIEWS_DROPPED: "answers that do not fit are left out. Raise max_length to train them.",
}


class Features(ByColumn):
    """Prepared rows as the mappings that other libraries' collators expect.

    Args:
        rows: rows of one document each.
        with_labels: whether to include `labels`; some collators create their own and fail on these.
    """

    def __init__(self, rows: PackedRows, *, with_labels: bool) -> None:
        self.rows, self._with_labels = rows, with_labels
        self.column_names = ("input_ids", "attention_mask", *(("labels",) if with_labels else ()))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (str, slice, list, range)):
            return self.columns(index)
        return as_feature(self.rows[index], with_labels=self._with_labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCollator:
    """Collates rows that were already tokenised and not prepared."""

    collate: FlatCollator | PaddedCollator

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch as `collate` does.

        Args:
            features: rows with `input_ids`, `labels` or masks unless all is trained, and `seq_lengths` if packed.
        """
        return self.collate([as_packed_row(feature) for feature in features])


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCollator:
    """Applies the caller's collator to streamed rows; see `Features`."""

    collate: Collator
    with_labels: bool

    def __call__(self, rows: Sequence[PackedRow]) -> dict[str, Any]:
        return self.collate([as_feature(row, with_labels=self.with_labels) for row in rows])


class Datasets:
    """Prepares datasets, and keeps their ledgers.

    Args:
        processing_class: a tokenizer; for rows with images a processor, of which a caller's `collator` takes the
            tokenizer alone.
        formatting_func: the caller's; see `honed.data.read.formatting`.
        collator: the caller's; None for ours.
        flat: whether our batches are flat.
        shares_prefixes: whether shared prefixes are computed once.
        pixel_dtype: what the pixels of images are cast to; None to leave them.

    Attributes:
        collator: the collator in use.
        prepared: name of a dataset -> the prepared rows with their ledger.
        streamed: the training rows, if they are streamed.
        notes: notes for the user.

    Raises:
        RecipeError: options are incompatible.
    """

    def __init__(
        self,
        args: SFTConfig,
        processing_class: Any,
        *,
        formatting_func: Callable[[Any], Any] | None,
        collator: Collator | None,
        flat: bool,
        shares_prefixes: bool = False,
        pixel_dtype: torch.dtype | None = None,
    ) -> None:
        self.args, self.tokenizer, self._formatting_func = args, vision.tokenizer_of(processing_class), formatting_func
        self._processing_class = processing_class if collator is None else self.tokenizer
        self._shares_prefixes = shares_prefixes
        self.prepared: dict[str, Prepared | VisionPrepared] = {}
        self.streamed: RowStream | None = None
        self.notes: list[str] = []
        self._custom = collator
        padding = {
            "pad_token_id": getattr(self.tokenizer, "pad_token_id", None) or 0,
            "multiple_of": int(args.pad_to_multiple_of or 1),
        }
        self.padded = PaddedCollator(**padding)
        own = sequence_parallel.collator_of(args, share_prefixes=shares_prefixes, **padding) if flat else self.padded
        self.collator: Collator = collator or (TokenCollator(collate=own) if args.skips_preparation else own)
        if vision.is_processor(self._processing_class):
            multiple = self.padded.multiple_of
            self.collator = vision.VisionCollator(processor=processing_class, multiple_of=multiple, dtype=pixel_dtype)
        if collator is not None and args.packing and not args.skips_preparation:
            raise RecipeError(
                f"packing=True packs nothing for a {type(collator).__name__}: it gets one document per row.",
                fix="leave packing or data_collator out",
            )

    def make(self, name: str, dataset: Any) -> Any:
        """Returns the dataset for the trainer; rows that are already prepared are returned unchanged.

        Raises:
            DataError, TemplateError, RecipeError: the rows or options cannot be used.
        """
        if dataset is None or isinstance(dataset, (PackedRows, VisionRows, Features, stream.StreamDataset)):
            return dataset
        if self.args.skips_preparation:
            if not hasattr(dataset, "__len__"):  # else accelerate slices the first rank's batches for all
                self.args.accelerator_config.dispatch_batches = False
            return dataset
        source = unprepared(dataset)
        _refuse_transform(source)
        formatting_func, options = self._formatting(source), self._options(name)
        if name == "train" and stream.is_streamed(source, self.args):
            return self._streamed(source, options, formatting_func)
        made = self._prepare(dataset, options, formatting_func, name)
        if name == "train":
            self._refuse_less_than_a_batch(len(made.rows))
            if self._custom is None and formatting_func is None:
                self.notes += notes_on_user_turns(source, self.args, options)
        self.prepared[name] = made
        self._tell_cuts(name, made)
        self.notes += [note if name == "train" else f"{name} set: {note}" for note in made.ledger.notes]
        if self._custom is None or isinstance(made.rows, VisionRows):
            return made.rows
        return Features(made.rows, with_labels=takes_labels(self._custom))

    def make_evaluation(self, dataset: Any) -> Any:
        """Like `make`, for an evaluation set or a dict of several."""
        if isinstance(dataset, dict):
            return {name: self.make(f"eval {name}", rows) for name, rows in dataset.items()}
        return self.make("eval", dataset)

    def ledger(self) -> Ledger | None:
        """The training rows' ledger, including the evaluation set's; None if the rows were not prepared."""
        if "train" not in self.prepared:
            return None
        ledger = self.prepared["train"].ledger
        if "eval" in self.prepared:
            ledger.evaluation = self.prepared["eval"].ledger.as_dict()
        return ledger

    def stop_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end trained turns; empty if the training rows were not prepared."""
        if self.streamed is not None:
            return tuple(self.streamed.stop_ids())
        return self.prepared["train"].stop_ids if "train" in self.prepared else ()

    def notes_on_weights(self, *, has_loss_func: bool) -> list[str]:
        """Returns notes on weights other than 0 and 1 that a custom collator or loss does not receive."""
        if not has_loss_func and self._custom is None:
            return []
        return [
            f"Tokens of the {name} set have weights that your data_collator or compute_loss_func does not receive: "
            "all trained tokens count the same."
            for name, made in self.prepared.items()
            if isinstance(made.rows, PackedRows) and not np.isin(made.rows.table.weights, (0, 1)).all()
        ]

    def _options(self, name: str) -> PrepareOptions:
        options = replace(self.args.prepare_options(evaluation=name != "train"), share_prefixes=self._shares_prefixes)
        masks_itself = isinstance(self._custom, DataCollatorForCompletionOnlyLM)
        return replace(options, train_on="all") if masks_itself else options

    def _prepare(
        self, data: Any, options: PrepareOptions, formatting_func: Any, name: str
    ) -> Prepared | VisionPrepared:
        """What the dataset gives, if it was prepared ahead; else made now."""
        own, args = self._processing_class, self.args
        if vision.is_processor(own) and (args.dataset_num_proc or 1) > 1:
            self.notes.append("dataset_num_proc (data.workers) has no effect on rows with images.")
        rows = _shuffled(unprepared(data), args.seed) if args.shuffle_dataset else data
        try:
            return prepare_rows(
                rows, own, options, args, formatting_func=formatting_func, desc=f"Preparing {name} data"
            )
        except DataError as error:
            if self._custom is None:
                raise
            raw = "if the data_collator takes rows as they are, set dataset_kwargs={'skip_prepare_dataset': True}"
            raise DataError(error.problem, fix=f"{error.fix}; {raw}") from None

    def _formatting(self, dataset: Any) -> Callable[[Any], Any] | None:
        if self._formatting_func is not None and has_ids(dataset):
            self.notes.append("formatting_func has no effect on rows that have `input_ids` already.")
            return None
        return self._formatting_func

    def _streamed(self, dataset: Any, options: PrepareOptions, formatting_func: Any) -> stream.StreamDataset:
        args = self.args
        self.streamed = RowStream(
            dataset,
            self.tokenizer,
            options,
            seed=args.order_seed,
            shuffle_buffer=args.shuffle_buffer,
            formatting_func=formatting_func,
        )
        args.ignore_data_skip = True  # a resumed stream finds its position itself
        collator = self.collator
        if self._custom is not None:
            collator = FeatureCollator(collate=self._custom, with_labels=takes_labels(self._custom))
        return stream.StreamDataset(self.streamed, args.per_device_train_batch_size, collator)

    def _refuse_less_than_a_batch(self, rows: int) -> None:
        """Raises a clear error; transformers' would only say that the loader has no length."""
        needed = self.args.per_device_train_batch_size * self.args.data_parallel_size
        if self.args.dataloader_drop_last and self.args.tokens_per_step is None and rows < needed:
            raise DataError(
                f"{counted(rows, 'row does', 'rows do')} not fill a batch of {needed:,}, and dataloader_drop_last=True "
                "drops such a batch.",
                fix="leave dataloader_drop_last out, or lower per_device_train_batch_size",
            )

    def _tell_cuts(self, name: str, made: Prepared | VisionPrepared) -> None:
        for reason, cut in made.ledger.rows_cut.items():
            self.notes.append(
                f"{cut:,} of {counted(made.ledger.rows_in, 'row')} of the {name} set are longer than max_length="
                f"{self.args.max_length}: {_CUTS[reason]}"
            )
        if lost := made.ledger.rows_dropped[NOTHING_FITS]:
            self.notes.append(
                f"{lost:,} of {counted(made.ledger.rows_in, 'row')} of the {name} set are left out: nothing to be "
                f"trained in them fits into max_length={self.args.max_length}. Raise max_length to train them."
            )


class GroupedByLength(LengthGroupedSampler):
    """An order that puts rows of similar length into the same batch to reduce padding.

    transformers' sampler draws from dropout's generator, so a resumed run could not repeat its order; this one depends
    only on the seed and the epoch. All batches of a step, on all ranks, have similar lengths, because ranks wait for
    the longest; the order does not depend on the number of ranks.

    Args:
        per_step: rows per optimizer step, over all ranks.
    """

    def __init__(self, rows: PackedRows, per_step: int, *, seed: int) -> None:
        super().__init__(per_step, lengths=[sum(rows[n].lengths) for n in range(len(rows))])
        self._seed, self.generator = seed, torch.Generator()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by the loader before each epoch."""
        self.generator.manual_seed(self._seed + epoch)


def show_row(rows: Any, tokenizer: Any, row: int) -> None:
    """Shows a prepared row with its trained tokens marked: coloured text, or HTML in a notebook.

    Raises:
        DataError: the rows are streamed or not prepared, or there is no such row.
    """
    from honed.report.row.preview import display, preview_ids

    rows = rows.rows if isinstance(rows, Features) else rows
    if not isinstance(rows, (PackedRows, VisionRows)):
        raise DataError(
            f"A {type(rows).__name__} holds no prepared rows to show.",
            fix="show rows before they are trained: honed.show(rows, tokenizer)",
        )
    if not -len(rows) <= row < len(rows):
        raise DataError(f"There is no row {row} among {len(rows):,}.", fix="rows are counted from 0")
    display(preview_ids(rows[row], tokenizer, name=f"row {row % len(rows)} of {len(rows):,}, counted from 0"))


def takes_labels(collator: Any) -> bool:
    """Whether a collator uses `labels` instead of creating its own."""
    from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

    makes_its_own = (DataCollatorForCompletionOnlyLM, DataCollatorForLanguageModeling, DataCollatorWithPadding)
    return not isinstance(collator, makes_its_own)


def as_feature(row: PackedRow, *, with_labels: bool) -> dict[str, list[int]]:
    """Returns `input_ids`, `attention_mask`, and `labels`, which are not shifted and -100 for untrained tokens."""
    ids = row["input_ids"]
    feature = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    return {**feature, "labels": row["labels"]} if with_labels else feature


def as_packed_row(feature: Mapping[str, Any]) -> PackedRow:
    """Converts a row that was already tokenised.

    Raises:
        DataError: it has no token ids, or its ids and labels do not match.
    """
    columns = {key: np.asarray(value).tolist() for key, value in feature.items() if key in TOKEN_COLUMNS}
    if not columns.get("input_ids"):
        raise DataError(
            f"skip_prepare_dataset is set, and a row has no `input_ids`, only {', '.join(map(str, feature))}.",
            fix="pass a data_collator that takes such rows, or leave skip_prepare_dataset out",
        )
    try:
        tokens: Any = FORMATS["tokens"].read(columns, Source(file="row", row=0), ReadOptions())
    except RowError as error:
        raise DataError(f"A row that was tokenised before cannot be used: {error}", fix="correct it") from None
    lengths = tuple(columns.get("seq_lengths") or (len(tokens.input_ids),))
    weights = np.array(tokens.weights, dtype=np.float32)
    weights[np.cumsum([0, *lengths[:-1]])] = 0.0  # nothing precedes a document's first token
    return PackedRow(input_ids=np.array(tokens.input_ids, dtype=np.int32), weights=weights, lengths=lengths)


def _refuse_transform(dataset: Any) -> None:
    if has_transform(dataset):
        raise RecipeError(
            "The dataset has a transform (with_transform), which would run only once, while rows are prepared.",
            fix="apply it with dataset.map(...), or let it give token ids and set "
            "dataset_kwargs={'skip_prepare_dataset': True}",
        )


def _shuffled(dataset: Any, seed: int) -> Any:
    if isinstance(dataset, Mixture):
        parts = tuple(replace(part, data=_shuffled(part.data, seed)) for part in dataset.parts)
        return replace(dataset, parts=parts)
    rows = list(read_rows(dataset))
    random.Random(seed).shuffle(rows)
    return SourcedRows(lambda: iter(rows))
