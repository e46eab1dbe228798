"""The user's own rows: the first few of the recipe's data, read as in training.

Shapes: T tokens of a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from honed.data.batch.table import PackedRows, TokenTable
from honed.data.encode.render import Rendered
from honed.data.example import Example
from honed.data.ledger import Ledger
from honed.data.mix.mixture import Mixture, Part, as_mixture, with_data
from honed.data.prepare.options import PrepareOptions, part_options, reading_of
from honed.data.prepare.prepare import make_template
from honed.data.prepare.reader import RowReader
from honed.data.read.formats import read_example
from honed.data.read.sources import SourcedRow, SourcedRows, read_rows
from honed.data.templates.view import Template
from honed.errors import DataError
from honed.quantities import counted

TEXT_ROWS = 200  # rows whose tokens are compared
DOCUMENTS = 16  # most documents that a model computes,
TOKENS = 512  # most tokens that they have together,
FEWEST = 4  # fewest documents in any case,
LONGEST = 256  # most tokens of one of them


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """A trained row: as read, as trained, and with which template and options."""

    example: Example
    views: tuple[Rendered, ...]
    cut: bool
    template: Template | None
    options: PrepareOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The first rows of the user's data.

    Attributes:
        data: the same rows, to be prepared again.
        options: of the preparation; rows that cannot be used are dropped and counted.
        rows: those with trained tokens, in order.
        ledger: of all rows.
    """

    data: Mixture
    tokenizer: Any
    options: PrepareOptions
    rows: tuple[SampleRow, ...]
    ledger: Ledger


def read_sample(data: Any, tokenizer: Any, options: PrepareOptions) -> Sample:
    """The first `TEXT_ROWS` rows of `data`, as many of each source.

    Args:
        data: whatever `sources.read_rows` reads, or a `Mixture`; its weights, caps and repeats are ignored.

    Raises:
        DataError: a file cannot be read, or no row can be trained.
        TemplateError: the chat template cannot be used.
    """
    options = replace(options, bad_rows="drop")
    mixture = as_mixture(data)
    each = max(1, TEXT_ROWS // len(mixture.parts))
    held = [_Held(list(islice(read_rows(part.data), each))) for part in mixture.parts]
    sampled = with_data(mixture, [SourcedRows(h) for h in held], weight=None, cap=None, repeat=1)
    ledger = Ledger()
    pairs = zip(sampled.parts, held, strict=True)
    rows = tuple(row for part, h in pairs for row in _rows(part, h.rows, tokenizer, options, ledger))
    if not rows:
        raise DataError(
            f"Of {counted(ledger.rows_in, 'row')} looked at, none can be trained on.\n{ledger.summary()}",
            fix="see `honed data check` on the same file",
        )
    return Sample(data=sampled, tokenizer=tokenizer, options=options, rows=rows, ledger=ledger)


@dataclass(frozen=True, slots=True)
class _Held:
    """Rows as a source that can be read repeatedly."""

    rows: list[SourcedRow]

    def __call__(self) -> Any:
        return iter(self.rows)


def _rows(
    part: Part, raw: Sequence[SourcedRow], tokenizer: Any, options: PrepareOptions, ledger: Ledger
) -> list[SampleRow]:
    own = part_options(part, options)
    template = make_template(tokenizer, own)
    reading = reading_of(own, template)
    by_source = dict(raw)
    return [
        SampleRow(
            example=read_example(by_source[kept.source], kept.source, reading, format=own.format),
            views=tuple(kept.views),
            cut=kept.cut is not None,
            template=template,
            options=own,
        )
        for kept in RowReader(tokenizer, template, own)(raw, ledger)
    ]


def documents_of(sample: Sample) -> PackedRows:
    """The documents that models compute, one per row; an even number of them if there are two.

    Long ones are cut to the last `LONGEST` tokens up to their last trained token.
    """
    chosen: list[Rendered] = []
    for view in (view for row in sample.rows for view in row.views):
        if len(chosen) >= FEWEST and sum(map(len, chosen)) + min(len(view), LONGEST) > TOKENS:
            break
        chosen.append(_stretch(view))
        if len(chosen) == DOCUMENTS:
            break
    chosen = chosen[: len(chosen) // 2 * 2] or chosen
    return PackedRows(TokenTable(chosen), [[number] for number in range(len(chosen))])


def together(rows: PackedRows, groups: Sequence[Sequence[int]]) -> PackedRows:
    """The documents with each group of them in one row."""
    return PackedRows(rows.table, [list(group) for group in groups])


def _stretch(view: Rendered) -> Rendered:
    if len(view) <= LONGEST:
        return view
    end = int(np.flatnonzero(view.weights)[-1]) + 1
    start = max(0, end - LONGEST)
    weights = view.weights[start:end].copy()
    weights[0] = 0.0
    return replace(view, input_ids=view.input_ids[start:end], weights=weights, turns=())
