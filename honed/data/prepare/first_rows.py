"""The first rows, prepared before anything that takes minutes: most data that cannot be trained show it there."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

from honed.data.mix.mixture import as_mixture, with_data
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.read.sources import SourcedRows, read_rows
from honed.errors import DataError, TemplateError

FIRST = 200  # rows of each source: well under a second


def refuse_bad_rows(data: Any, tokenizer: Any, options: PrepareOptions, *, count: int = FIRST) -> None:
    """Raises what `prepare` would raise, if the first rows give a reason to; all rows are read only then.

    How long rows may be is not looked at: the model has a say in it.

    Args:
        data: what `prepare` takes, and what can be read more than once.
        tokenizer, options: as for `prepare`.
        count: rows to look at, of each source.

    Raises:
        DataError, TemplateError: see `prepare`.
    """
    of_any_length = replace(options, max_length=None, packing=False)
    mixture = as_mixture(data)
    first = [SourcedRows(list(islice(read_rows(part.data), count)).__iter__) for part in mixture.parts]
    start = with_data(mixture, first, weight=None, cap=None, repeat=1)
    try:
        prepare(start, tokenizer, of_any_length, desc="Looking at the first rows")
    except (DataError, TemplateError):
        prepare(data, tokenizer, options)
