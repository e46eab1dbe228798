"""Source rows -> rendered rows: reading, rendering and the length policy, a thousand rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from honed.data.encode.render import Rendered, Renderer, Turn
from honed.data.example import Example, RowError
from honed.data.ledger import Ledger
from honed.data.prepare.fast_path import FastPath
from honed.data.prepare.kept import KeptRow, KeptRows
from honed.data.prepare.options import PrepareOptions, reading_of
from honed.data.read.columns import Columns
from honed.data.read.formats import read_example
from honed.data.read.formatting import Formatting
from honed.data.read.sources import SourcedRow
from honed.data.templates.view import Template, View
from honed.errors import DataError, TemplateError
from honed.quantities import counted

ROWS_AT_A_TIME = 1000
NOT_VERIFIED = "the chat template's spans cannot be verified"

# What the length policy does to rows that still have trained tokens.
VIEWS_DROPPED = "overlong: views dropped"
CUT_AT_THE_END = "overlong: cut at the end"
SPLIT_INTO_PARTS = "overlong: split into parts"
# Why rows are dropped instead of being cut.
NOTHING_FITS = "overlong: nothing to train within max_length"
_DONE_TO_LONG_ROWS = {"drop": VIEWS_DROPPED, "truncate": CUT_AT_THE_END, "split": SPLIT_INTO_PARTS}


class RowReader:
    """Reads rows with one template and one tokenizer.

    Args:
        tokenizer, template, options: see `prepare`.
        formatting_func: applied before the format is recognised; see `Formatting`.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template | None,
        options: PrepareOptions,
        formatting_func: Callable[[Any], Any] | None = None,
    ) -> None:
        self._options = options
        self._renderer = Renderer(tokenizer, template, train_on=options.train_on)
        self._reading = reading_of(options, template)
        self._formatting = None
        if formatting_func is not None:
            self._formatting = Formatting(formatting_func, self._reading.text_column)
        # A formatting function may be called only once.
        self._fast_path = FastPath(self._renderer, options) if formatting_func is None else None
        self._columns = Columns(self._reading, options.format)

    def __call__(self, rows: Iterable[SourcedRow], ledger: Ledger) -> Iterator[KeptRow]:
        """Yields the rows that can be trained, in order; `ledger` counts all rows and what happened to the others.

        Raises:
            DataError, TemplateError: see `prepare`.
        """
        iterator = iter(rows)
        while chunk := list(islice(iterator, ROWS_AT_A_TIME)):
            ledger.rows_in += len(chunk)
            self._count_columns(chunk, ledger)
            yield from (row for _, row in self._kept(chunk, ledger, first=ledger.rows_in == len(chunk)))

    def columns(self, chunk: Sequence[SourcedRow], ledger: Ledger) -> KeptRows:
        """The same for one chunk, in columns; faster, because most rows take the fast path.

        Raises:
            DataError, TemplateError: see `prepare`.
        """
        ledger.rows_in += len(chunk)
        self._count_columns(chunk, ledger)
        if self._fast_path is None:
            return KeptRows.of([row for _, row in self._kept(chunk, ledger, first=ledger.rows_in == len(chunk))])
        done, went, own_bos = self._fast_path(chunk)
        ledger.rows_with_own_bos += own_bos
        if went.all():
            return done
        left = np.flatnonzero(~went).tolist()
        first = ledger.rows_in == len(chunk) and not len(done)
        others = list(self._kept([chunk[n] for n in left], ledger, first=first))
        places = [*np.flatnonzero(went).tolist(), *(left[place] for place, _ in others)]
        return KeptRows.joined([done, KeptRows.of([row for _, row in others])]).chosen(np.argsort(places))

    def get_ready(self) -> None:
        """Prepares, at once, what pays off only for many rows."""
        self._renderer.encoder.get_ready()

    def _count_columns(self, chunk: Sequence[SourcedRow], ledger: Ledger) -> None:
        """Counts the columns that no format reads; a formatting function may read any column."""
        if self._formatting is None:
            self._columns.count(chunk, ledger)

    def _kept(self, chunk: Sequence[SourcedRow], ledger: Ledger, *, first: bool) -> Iterator[tuple[int, KeptRow]]:
        """Yields the trainable rows of a chunk with their index in it; `first` if no row was kept before."""
        planned = list(self._planned(chunk, ledger, first=first))
        encoded = self._renderer.encode([(example, views) for _, example, views in planned])
        ledger.rows_with_own_bos += sum(any(view.brings_opening for view in views) for views in encoded)
        ledger.rows_with_own_eos += sum(any(view.brings_closing for view in views) for views in encoded)
        for (place, _, _), views in zip(planned, encoded, strict=True):
            if row := _kept(views, self._options, ledger):
                yield place, row

    def _planned(
        self, chunk: Sequence[SourcedRow], ledger: Ledger, *, first: bool
    ) -> Iterator[tuple[int, Example, list[View]]]:
        """Reads and plans the rows of a chunk; unusable rows are counted in the ledger."""
        refused: TemplateError | None = None
        planned = 0
        for place, (source, row) in enumerate(chunk):
            try:
                shaped = row if self._formatting is None else self._formatting(row)
                example = read_example(shaped, source, self._reading, format=self._options.format)
                views = self._renderer.plan(example)
            except RowError as error:
                ledger.drop(source, error.reason, error.detail)
            except TemplateError as error:
                refused = refused or TemplateError(f"{source}: {error.problem}", fix=error.fix)
                if self._options.bad_rows == "error":
                    raise refused from None
                ledger.drop(source, NOT_VERIFIED, in_one_line(error))
            else:
                planned += 1
                ledger.rows_with_control_tokens += self._renderer.spells_control_tokens(views)
                yield place, example, views
        if refused and not planned and first:
            raise refused  # no row of the first chunk could be rendered: the template is at fault


def in_one_line(error: TemplateError) -> str:
    """Describes what a template did to one of many rows, and what to do."""
    return f"{error.problem.partition(chr(10))[0]} Fix: {error.fix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A row's documents after the length policy.

    Attributes:
        kept: the documents that have trained tokens.
        longest: tokens of the longest document before the policy.
        overlong: whether that exceeded the limit.
        cut: what the policy did, as reason and detail; None if it did nothing or nothing is kept.
        dropped: why nothing of the row is trained; "" if something is.
    """

    kept: list[Rendered]
    longest: int
    overlong: bool
    cut: tuple[str, str] | None
    dropped: str


def fit(views: Sequence[Rendered], options: PrepareOptions) -> Fitted:
    """Applies the length policy to the documents of one row.

    Raises:
        DataError: a document is too long, and `overlong` is "error".
    """
    longest, limit = max(map(len, views)), options.longest_document
    if limit is None or longest <= limit:
        kept = [view for view in views if view.trained]
        return Fitted(kept=kept, longest=longest, overlong=False, cut=None, dropped="" if kept else "nothing to train")
    kept = [fitted for view in views for fitted in _fitted(view, options) if fitted.trained]
    reason = _DONE_TO_LONG_ROWS[options.overlong_policy]
    detail = f"{counted(longest, 'token')}, max_length {options.max_length}"
    if kept:
        return Fitted(kept=kept, longest=longest, overlong=True, cut=(reason, detail), dropped="")
    why = "overlong" if options.overlong_policy == "drop" else NOTHING_FITS
    return Fitted(kept=[], longest=longest, overlong=True, cut=None, dropped=why)


def _kept(views: list[Rendered], options: PrepareOptions, ledger: Ledger) -> KeptRow | None:
    """Returns the row after the length policy; None, counted as dropped, if nothing of it is trained."""
    fitted = fit(views, options)
    if fitted.dropped:
        ledger.drop(views[0].source, fitted.dropped, counted(fitted.longest, "token"))
        return None
    return KeptRow(source=views[0].source, views=fitted.kept, cut=fitted.cut)


def _fitted(view: Rendered, options: PrepareOptions) -> list[Rendered]:
    """Fits the view to the length limit: the view itself, its start, its parts, or nothing."""
    limit = options.longest_document
    if limit is None or len(view) <= limit:
        return [view]
    if options.overlong_policy == "error":
        raise DataError(
            f"{view.source}: {counted(len(view), 'token')}, more than max_length {limit}.",
            fix="raise max_length, or set overlong=drop, overlong=truncate or overlong=split",
        )
    starts = {"drop": [], "truncate": [0], "split": list(range(0, len(view), limit))}[options.overlong_policy]
    return [_part(view, start, start + limit) for start in starts]


def _part(view: Rendered, start: int, end: int) -> Rendered:
    """Returns the tokens [start, end) as a separate document, whose first token is not predicted."""
    weights = view.weights[start:end].copy()
    weights[:1] = 0.0
    turns = (Turn(start=t.start - start, end=t.end - start, stop=t.stop) for t in view.turns if start < t.end <= end)
    return Rendered(
        input_ids=view.input_ids[start:end],
        weights=weights,
        source=view.source,
        turns=tuple(replace(turn, start=max(turn.start, 0)) for turn in turns),
        views=view.views,
    )
