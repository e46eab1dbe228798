"""A row with the trained tokens marked: text in a terminal, HTML in a notebook."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from typing import Any

from honed.data.example import RowError
from honed.data.lint.view import ShownToken, TokenViewer, visible
from honed.data.prepare.options import PrepareOptions
from honed.data.read.sources import read_rows
from honed.errors import DataError, RecipeError
from honed.progress import in_notebook
from honed.quantities import counted
from honed.recipe import suggest
from honed.report.markup import Html, join, tag
from honed.report.row.text import Style, legend, shown_views, view_text

TRAINED = "background:#9fd8a7;color:#111"  # readable on light and on dark pages
WEIGHTED = "background:#f2d675;color:#111"
BOX = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPreview:
    """Token sequences of a row. `str()` is text for a terminal; a notebook shows HTML.

    All content of a row is escaped, so that it can control neither the terminal nor the page.

    Attributes:
        parts: (headline, tokens) of each sequence.
    """

    parts: tuple[tuple[str, tuple[ShownToken, ...]], ...]

    def text(self, style: Style) -> str:
        """The text in this style; long untrained stretches are shortened unless `style.whole`."""
        lines = [line for head, tokens in self.parts for line in (head, view_text(tokens, style), "")]
        return "\n".join([*lines, legend(style)])

    def __str__(self) -> str:
        return self.text(Style.of(sys.stdout, whole=True))

    def _repr_html_(self) -> str:
        shown = [join([tag("p", head), tag("div", _stretches(tokens), style=BOX)]) for head, tokens in self.parts]
        mark = tag("span", "marked", style=TRAINED)
        return tag("div", join(shown), tag("p", mark, ": trained; ids of a token under the pointer"))


def preview_ids(row: Any, tokenizer: Any, *, name: str) -> RowPreview:
    """A prepared row as training reads it.

    Args:
        row: has `input_ids`, `weights` and `lengths` (see `honed.data.batch.table.PackedRow`).
        tokenizer: the tokenizer that made the ids.
        name: the row's name, for the headline.
    """
    own, documents = getattr(tokenizer, "tokenizer", tokenizer), len(row.lengths)
    trained = int((row.weights > 0).sum())
    packed = f" in {documents:,} documents" if documents > 1 else ""
    head = f"{name}: {counted(len(row.input_ids), 'token')}{packed}, {trained:,} of them trained"
    return RowPreview(parts=((visible(head), tuple(TokenViewer(own, own.all_special_ids).tokens(row))),))


def preview(found: tuple[Any, Any], tokenizer: Any, options: PrepareOptions, *, number: int) -> RowPreview:
    """A row as the model will see it, every view of it.

    Args:
        found: the source and the row, as `honed.data.read.sources.read_rows` gives them.
        tokenizer: a transformers tokenizer, or a processor.
        number: by which Python asked for it, from 0; the source counts from 1.

    Raises:
        DataError: the row cannot be trained on; the message says why.
    """
    source, row = found
    name = f"row {number}, counted from 0 ({source})"
    try:
        views = shown_views(found, options, tokenizer)
    except RowError as error:
        raw = json.dumps(row, ensure_ascii=False, default=str)[:200]
        raise DataError(visible(f"{name} cannot be trained on: {error}: {raw}"), fix="fix the row") from None
    return RowPreview(parts=tuple((visible(f"{name}, {head}"), tuple(tokens)) for head, tokens in views))


def show(rows: Any, tokenizer: Any, row: int = 0, **options: Any) -> None:
    """Shows a row as training would see it, with trained tokens marked: coloured text, or HTML in a notebook.

    Args:
        rows: anything that `honed.data.read.sources.read_rows` reads: a file, a list of rows, a `datasets.Dataset`.
        tokenizer: a transformers tokenizer, or a processor for rows with images.
        row: number of the row, counted from 0.
        options: options of `honed.PrepareOptions`, such as `train_on="last"`.

    Raises:
        DataError: there is no such row, or it cannot be trained on.
        RecipeError: an option is unknown or wrong.
    """
    known = PrepareOptions.__dataclass_fields__
    for name in options.keys() - known.keys():
        raise RecipeError(f"honed.show has no option {name!r}.", fix=suggest(name, known))
    count = 0
    for count, found in enumerate(read_rows(rows), start=1):
        if count == row + 1:
            display(preview(found, tokenizer, PrepareOptions(**options), number=row))
            return
    raise DataError(f"There is no row {row} among {count:,}.", fix="rows are counted from 0")


def display(shown: RowPreview) -> None:
    """Prints the preview, or shows it in the notebook."""
    if in_notebook():
        import_module("IPython.display").display(shown)
    else:
        sys.stdout.write(f"{shown}\n")


def _stretches(tokens: Sequence[ShownToken]) -> Html:
    """Adjacent tokens of equal weight in one element; weights other than 0 and 1 are shown before the text."""
    parts = []
    for weight, group in groupby(tokens, key=lambda token: token.weight):
        label = "" if weight in (0, 1) else f"{weight:g}:"
        inside = join([label, *(tag("span", token.text, title=" ".join(map(str, token.ids))) for token in group)])
        parts.append(tag("span", inside, style=None if not weight else TRAINED if weight == 1 else WEIGHTED))
    return join(parts)
