"""Reads, renders and packs rows during training, in memory that does not depend on their number.

    files, shuffled by (seed, epoch)  ->  rows  ->  buffers of `shuffle_buffer` rows, each shuffled by (seed, epoch, its
    number)  ->  blocks of 1,000 rows, each rendered and packed by itself  ->  packed rows  ->  batches, numbered

So the sequence of batches is a function of the data, the options and the seed. Epochs follow each other without end.
Several readers (ranks, workers of a DataLoader) each run through the same sequence and take every n-th batch of it.
To resume at a `Place`, rows before its buffer are read and discarded, and nothing before its block is rendered.

Sources with weights take turns, so that after any number of rows each has contributed its share to within about one
row; a source that ends starts again in another order.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np

from honed.data.batch.pack import fill_rate, one_by_one, pack_best_fit
from honed.data.batch.table import PackedRow, PackedRows, TokenTable
from honed.data.encode.empty_reasoning import EmptyReasoning, note_of
from honed.data.encode.render import Rendered
from honed.data.ledger import Ledger
from honed.data.mix.mixture import as_mixture
from honed.data.prepare.nothing_left import nothing_left
from honed.data.prepare.options import PrepareOptions, part_options
from honed.data.prepare.prepare import (
    assert_conserved,
    count_documents,
    make_template,
    notes_of_templates,
    stop_on_bad_rows,
)
from honed.data.prepare.reader import RowReader
from honed.data.prepare.spelled_end import notes_on_ends
from honed.data.read.sources import SourcedRow, shards
from honed.errors import DataError, RecipeError

BLOCK = 1000  # rows that are rendered and packed at a time
SHUFFLE_BUFFER = 10_000

_Drawn = tuple[int, SourcedRow]  # the index of the part that a row is from


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Place:
    """The position of a packed row: the epoch, the block in it, the row in that; `batch` is its batch's number."""

    epoch: int = 0
    block: int = 0
    row: int = 0
    batch: int = 0

    def as_dict(self) -> dict[str, int]:
        """Returns the place for a checkpoint."""
        return asdict(self)


class RowStream:
    """The endless sequence of packed rows.

    Args:
        data: whatever `sources.shards` accepts, or a `Mixture`; its rows must be readable again in each epoch.
        tokenizer, options, formatting_func: as for `prepare`.
        seed: determines the order.
        shuffle_buffer: rows held and shuffled at a time; 0 keeps the order.

    Attributes:
        ledger: counts the rows that this process has read so far.

    Raises:
        RecipeError: a source has a cap or is repeated, which would require reading all of it first, or rows are to be
            wrapped.
    """

    def __init__(
        self,
        data: Any,
        tokenizer: Any,
        options: PrepareOptions,
        *,
        seed: int = 0,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        formatting_func: Callable[[Any], Any] | None = None,
    ) -> None:
        if shuffle_buffer < 0:
            raise RecipeError(f"shuffle_buffer is {shuffle_buffer}.", fix="set a number of rows; 0 does not shuffle")
        if options.packing and options.packing_strategy == "wrapped":
            raise RecipeError(
                "packing_strategy=wrapped does not work with streaming.", fix="use bfd or bfd_split, or streaming=false"
            )
        self._parts = as_mixture(data).parts
        for part in self._parts:
            if part.cap is not None or part.repeat != 1:
                raise RecipeError(
                    f"Source {part.name}: cap and repeat do not work with streaming.", fix="use weights instead"
                )
        self._tokenizer, self._options, self._seed, self._buffer = tokenizer, options, seed, shuffle_buffer
        own = [part_options(part, options) for part in self._parts]
        self._templates = [make_template(tokenizer, one) for one in own]
        self._readers = [
            RowReader(tokenizer, template, one, formatting_func)
            for template, one in zip(self._templates, own, strict=True)
        ]
        self.ledger = Ledger()
        self._reasoning, self._empty_reasoning = EmptyReasoning(tokenizer), 0

    def batches(self, size: int, start: Place | None = None) -> Iterator[tuple[Place, list[PackedRow]]]:
        """Yields batches of `size` rows with the place of their first row, from the start or from such a place."""
        start = start or Place()
        packed, number = self.rows(start), start.batch
        while group := list(islice(packed, size)):
            yield replace(group[0][0], batch=number), [row for _, row in group]
            number += 1

    def rows(self, start: Place | None = None) -> Iterator[tuple[Place, PackedRow]]:
        """Yields packed rows without end, each with its place (`batch` is not set).

        Raises:
            DataError: rows cannot be used (with `bad_rows="error"`), or a whole epoch has no usable row.
        """
        start = start or Place()
        epoch, first, self.ledger, self._empty_reasoning = start.epoch, start.block, Ledger(), 0
        while True:
            found = bool(first)
            for number, drawn in self._blocks(epoch, first):
                rows = self._packed(drawn, np.random.default_rng([self._seed, 2, epoch, number]))
                found |= len(rows) > 0
                skipped = start.row if (epoch, number) == (start.epoch, start.block) else 0
                for at in range(skipped, len(rows)):
                    yield Place(epoch=epoch, block=number, row=at), rows[at]
            if not found:
                raise nothing_left(self.ledger, self._options)
            epoch, first = epoch + 1, 0

    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end trained turns in the first block, most frequent first. Errors in its rows are raised here."""
        _, drawn = next(self._blocks(0, 0), (0, []))
        counts = Counter(_stops(self._documents(drawn, Ledger())))
        return tuple(token for token, _ in counts.most_common())

    def _packed(self, drawn: list[_Drawn], order: np.random.Generator) -> PackedRows:
        documents = self._documents(drawn, self.ledger)
        if self._buffer:
            documents = [documents[n] for n in order.permutation(len(documents))]
        table, limit = TokenTable(documents), self._options.max_length
        rows = one_by_one(len(table))
        if self._options.packing and limit:
            rows = pack_best_fit(table.lengths, limit)
        assert_conserved(rows, table, sum(int(np.count_nonzero(document.weights)) for document in documents))
        self._count(documents, table, rows)
        return PackedRows(table, rows)

    def _documents(self, drawn: list[_Drawn], ledger: Ledger) -> list[Rendered]:
        documents = []
        for number, read in enumerate(self._readers):
            for kept in read([row for part, row in drawn if part == number], ledger):
                kept.count(ledger)
                documents += kept.views
        stop_on_bad_rows(ledger, self._options)
        return documents

    def _count(self, documents: list[Rendered], table: TokenTable, rows: list[list[int]]) -> None:
        ledger, before = self.ledger, self.ledger.packed_rows
        count_documents(table, _stops(documents), self._tokenizer, ledger)
        ledger.packed_rows += len(rows)
        self._empty_reasoning += self._reasoning.count(table.input_ids, table.weights)
        ledger.notes = ledger.notes_of_counts()
        if n := self._empty_reasoning:
            ledger.notes.append(note_of(n, self._options.train_on))
        ledger.notes += notes_on_ends(self._templates, self._tokenizer, table) + notes_of_templates(self._templates)
        if self._options.packing and self._options.max_length and rows:
            fill = fill_rate(table.lengths, rows, self._options.max_length)
            ledger.fill = ((ledger.fill or 0.0) * before + fill * len(rows)) / ledger.packed_rows

    def _blocks(self, epoch: int, first: int) -> Iterator[tuple[int, list[_Drawn]]]:
        """Yields the blocks of an epoch from number `first` on."""
        size = self._buffer or BLOCK
        per_buffer = -(-size // BLOCK)
        drawn = self._drawn(epoch)
        deque(islice(drawn, first // per_buffer * size), maxlen=0)
        buffer = first // per_buffer
        while rows := list(islice(drawn, size)):
            if self._buffer:
                order = np.random.default_rng([self._seed, 1, epoch, buffer]).permutation(len(rows))
                rows = [rows[n] for n in order]
            for number in range(-(-len(rows) // BLOCK)):
                if buffer * per_buffer + number >= first:
                    yield buffer * per_buffer + number, rows[number * BLOCK : (number + 1) * BLOCK]
            buffer += 1

    def _drawn(self, epoch: int) -> Iterator[_Drawn]:
        if self._parts[0].weight is None:
            return self._once(range(len(self._parts)), epoch)
        return self._by_weight([part.weight or 0.0 for part in self._parts])

    def _once(self, parts: range, epoch: int) -> Iterator[_Drawn]:
        """Yields all rows of these parts, file by file."""
        readers = [(part, read) for part in parts for read in shards(self._parts[part].data, streaming=True)]
        order = np.random.default_rng([self._seed, 0, epoch]).permutation(len(readers))
        for number in order if self._buffer else range(len(readers)):
            part, read = readers[number]
            yield from ((part, row) for row in read())

    def _by_weight(self, weights: list[float]) -> Iterator[_Drawn]:
        """Yields rows without end, from the part that is furthest behind its share."""
        shares = np.array(weights) / np.sum(weights)
        given = np.zeros(len(weights))
        sources = [self._again(part) for part in range(len(weights))]
        while True:
            part = int(np.argmax(shares * (given.sum() + 1) - given))
            given[part] += 1
            yield next(sources[part])

    def _again(self, part: int) -> Iterator[_Drawn]:
        epoch = 0
        while True:
            rows = self._once(range(part, part + 1), epoch)
            first = next(rows, None)
            if first is None:
                raise DataError(f"The source {self._parts[part].name} holds no rows.", fix="leave it out")
            yield from chain([first], rows)
            epoch += 1


def _stops(documents: list[Rendered]) -> Iterator[int]:
    return (turn.stop for document in documents for turn in document.turns)
