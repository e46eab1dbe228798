"""Turns rows with images into training rows and a ledger: `prepare` for processors with images.

Every image is opened once during preparation, so that broken ones are in the ledger before training begins and all
lengths are known. Only token ids and references to images are kept; each batch opens its images again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from honed.data.batch.row_columns import ByColumn
from honed.data.batch.table import PackedRow, TokenTable
from honed.data.encode.render import Rendered
from honed.data.ledger import Ledger
from honed.data.mix.mixture import LEFT_OUT_BY_WEIGHT, Mixture, as_mixture
from honed.data.prepare.nothing_left import nothing_left
from honed.data.prepare.options import PrepareOptions, part_options
from honed.data.prepare.prepare import count_documents, stop_on_bad_rows
from honed.data.prepare.reader import KeptRow
from honed.data.vision.images import ImageRef, need_pillow
from honed.data.vision.render import VisionReader, VisionRendered
from honed.errors import RecipeError
from honed.progress import progress
from honed.quantities import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionRow(PackedRow):
    """One document and its images, in order."""

    images: tuple[ImageRef, ...] = ()


class VisionRows(ByColumn):
    """A map-style dataset of `VisionRow`, one per document."""

    def __init__(self, documents: Sequence[Rendered]) -> None:
        self.table = TokenTable(documents)
        self.images = [d.images if isinstance(d, VisionRendered) else () for d in documents]

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (str, slice, list, range)):
            return self.columns(index)
        index = range(len(self))[index]
        row = self.table.row([index])
        return VisionRow(input_ids=row.input_ids, weights=row.weights, lengths=row.lengths, images=self.images[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionPrepared:
    """What training reads; see `honed.data.prepare.prepare.Prepared`."""

    rows: VisionRows
    ledger: Ledger
    stop_ids: tuple[int, ...]


def prepare_vision(
    data: Any,
    processor: Any,
    options: PrepareOptions,
    *,
    image_folder: str | Path | None = None,
    max_pixels: int | None = None,
    formatting_func: Callable[[Any], Any] | None = None,
    desc: str = "Preparing data",
) -> VisionPrepared:
    """Turns rows with and without images into training rows. Neither `data` nor `processor` is changed.

    Args:
        data: whatever `sources.read_rows` reads, or a `Mixture`.
        processor: a transformers processor for images.
        options: see `PrepareOptions`. Overlong rows are dropped (or refused), never cut.
        image_folder: folder that image paths are relative to and must stay in; None for each data file's folder.
        max_pixels: larger images are reduced to this size (see `honed.data.vision.images.shrunk`); None for no limit.
        formatting_func: as for `prepare`.
        desc: text of the progress bar.

    Raises:
        DataError: rows cannot be used (with `bad_rows="error"`), or no row is left.
        TemplateError: the processor's chat template cannot be used.
        RecipeError: packing is enabled.
        MissingExtraError: Pillow is not installed.
    """
    need_pillow()
    options, note = without_cuts(options)
    mixture, ledger = as_mixture(data), Ledger()
    folder = None if image_folder is None else Path(image_folder)
    kept = []
    for part in mixture.parts:
        reader = VisionReader(
            processor,
            part_options(part, options),
            formatting_func,
            image_folder=folder,
            max_pixels=max_pixels,
            data_set=part.data if hasattr(part.data, "cast_column") and hasattr(part.data, "__getitem__") else None,
        )
        kept.append(list(reader(progress(mixture.rows(part, ledger), desc=desc, unit="row"), ledger)))
    stop_on_bad_rows(ledger, options)
    documents = _documents(mixture, kept, ledger)
    if not documents:
        raise nothing_left(ledger, options, images=True)
    if note and ledger.rows_dropped["overlong"]:
        ledger.notes.append(note)
    return _counted(documents, processor.tokenizer, ledger)


def without_cuts(options: PrepareOptions) -> tuple[PrepareOptions, str]:
    """Returns the options with cutting of rows disabled, and a note ("" for none).

    Raises:
        RecipeError: packing is enabled.
    """
    if options.packing:
        raise RecipeError(
            "packing=True, but rows with images cannot share one: their images would be seen by their neighbours.",
            fix="set packing=False, or train on text alone with the tokenizer (processing_class=processor.tokenizer)",
        )
    if options.overlong in ("truncate", "split"):
        told = f"overlong={options.overlong} would cut images: rows longer than max_length were dropped"
        return replace(options, overlong="drop"), told
    return options, ""


def _documents(mixture: Mixture, kept: list[list[KeptRow]], ledger: Ledger) -> list[Rendered]:
    """Returns the documents of one epoch; counts the rows of all sources."""
    documents: list[Rendered] = []
    for rows, times in zip(kept, mixture.times(list(map(len, kept))), strict=True):
        for row, n in zip(rows, times.tolist(), strict=True):
            row.count(ledger) if n else ledger.drop(row.source, LEFT_OUT_BY_WEIGHT)
            documents += row.views * n
    return documents


def _counted(documents: list[Rendered], tokenizer: Any, ledger: Ledger) -> VisionPrepared:
    rows = VisionRows(documents)
    stops = (turn.stop for document in documents for turn in document.turns)
    stop_ids = count_documents(rows.table, stops, tokenizer, ledger)
    ledger.packed_rows = len(rows)
    ledger.notes += ledger.notes_of_counts()
    shown = sum(bool(images) for images in rows.images)
    images = counted(sum(map(len, rows.images)), "image")
    ledger.notes.append(
        f"{shown:,} of {counted(len(rows), 'row')} {'shows' if shown == 1 else 'show'} images, {images} in all"
    )
    return VisionPrepared(rows=rows, ledger=ledger, stop_ids=stop_ids)
