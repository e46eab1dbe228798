"""Rows in, packed rows and a ledger out: reading, rendering, the length policy and packing in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from honed.data.example import Example, Source
from honed.data.formats import FORMATS, ReadOptions, RowError, read_example
from honed.data.ledger import Ledger
from honed.data.pack import fill_rate, one_by_one, pack_best_fit
from honed.data.render import Rendered, Renderer
from honed.data.sources import SourcedRow, read_rows
from honed.data.table import PackedRows, TokenTable
from honed.data.template import TRAIN_ON, JinjaTemplate, PlainTemplate, Template, View
from honed.errors import DataError, RecipeError
from honed.progress import progress

ROWS_AT_A_TIME = 1000
OVERLONG = ("drop", "truncate", "error")
BAD_ROWS = ("error", "drop")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """How rows become training tokens.

    Attributes:
        format: a name of `formats.FORMATS`, or "auto": recognised row by row.
        template: "auto" (the tokenizer's own), "plain", or the path of a Jinja file.
        template_arguments: further variables of the template.
        system: system prompt for conversations that have none.
        train_on: "assistant" (every answer), "last" (the last one), "all" (the whole text), or "completion" (answers
            of rows that separate question and answer, the whole text of the rest: TRL's default).
        max_length: longest document in tokens, and the capacity of a packed row; None for no limit (no packing then).
        overlong: what happens to longer documents: "drop", "truncate" (keeps the start, counts what was cut), "error".
        packing: several documents share a row, isolated from each other.
        bad_rows: "error" (stop and list them) or "drop" (count them).
        text_field: column of plain-text rows.
    """

    format: str = "auto"
    template: str = "auto"
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    train_on: str = "assistant"
    max_length: int | None = 1024
    overlong: str = "drop"
    packing: bool = False
    bad_rows: str = "error"
    text_field: str = "text"

    def __post_init__(self) -> None:
        _one_of("format", self.format, ("auto", *FORMATS))
        _one_of("train_on", self.train_on, TRAIN_ON)
        _one_of("overlong", self.overlong, OVERLONG)
        _one_of("bad_rows", self.bad_rows, BAD_ROWS)
        if self.max_length is not None and self.max_length < 2:
            raise RecipeError(
                f"max_length is {self.max_length}.", fix="a document needs at least 2 tokens to be trained"
            )
        if self.packing and self.max_length is None:
            raise RecipeError("packing needs max_length.", fix="set max_length: it is the length of a packed row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What training reads.

    Attributes:
        rows: the packed rows.
        ledger: what became of every source row.
        stop_ids: ids at which trained turns end, most frequent first; generation must stop at them.
    """

    rows: PackedRows
    ledger: Ledger
    stop_ids: tuple[int, ...]


def prepare(
    data: Any,
    tokenizer: Any,
    options: PrepareOptions,
    *,
    formatting_func: Callable[[Any], Any] | None = None,
    desc: str = "Preparing data",
) -> Prepared:
    """Turns source rows into packed rows. Neither `data` nor `tokenizer` is changed.

    Args:
        data: whatever `sources.read_rows` reads.
        tokenizer: a transformers tokenizer.
        options: see `PrepareOptions`.
        formatting_func: row -> text, messages, or another row; applied before the format is recognised.
        desc: text of the progress bar.

    Raises:
        DataError: rows cannot be used (with `bad_rows="error"`), or none is left.
        TemplateError: the chat template's spans cannot be verified.
    """
    template = make_template(tokenizer, options)
    renderer = Renderer(tokenizer, template, train_on=options.train_on)
    reading = ReadOptions(
        system=options.system,
        alpaca_separator=template.alpaca_separator if template else "\n",
        text_field=options.text_field,
    )
    ledger = Ledger()
    documents: list[Rendered] = []
    rows = progress(read_rows(data), desc=desc, total=_length(data), unit="rows")
    for chunk in _chunks(rows, ROWS_AT_A_TIME):
        ledger.rows_in += len(chunk)
        planned = list(_planned(chunk, renderer, reading, ledger, options=options, formatting_func=formatting_func))
        for views in renderer.encode(planned):
            documents += _kept(views, options, ledger)
    _stop_on_bad_rows(ledger, options)
    return _finish(documents, tokenizer, options, ledger, template)


def make_template(tokenizer: Any, options: PrepareOptions) -> Template | None:
    """The template that the options name; None where the tokenizer has none and the data may not need one.

    Raises:
        TemplateError, RecipeError: the named template cannot be used with this tokenizer.
    """
    if options.template == "plain":
        for token in ("<|im_start|>", "<|im_end|>"):
            if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1:
                raise RecipeError(
                    f"template=plain needs {token} as one token, and this tokenizer does not have it.",
                    fix="use a tokenizer with ChatML tokens, or another template",
                )
        return PlainTemplate() if options.system is None else PlainTemplate(system=options.system)
    if options.template != "auto":
        tokenizer = tokenizer_with_template(tokenizer, options.template)
    own = getattr(tokenizer, "chat_template", None)
    if not own:
        return None
    plain = PlainTemplate.from_jinja(own) if isinstance(own, str) else None
    return plain or JinjaTemplate(tokenizer, arguments=options.template_arguments)


def tokenizer_with_template(tokenizer: Any, path: str) -> Any:
    """A copy of the tokenizer that has the template in this file."""
    import copy

    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError(f"template: no such file: {path}", fix="use 'auto', 'plain' or the path of a Jinja file")
    changed = copy.copy(tokenizer)
    changed.chat_template = file.read_text(encoding="utf-8")
    return changed


def _planned(
    chunk: list[SourcedRow],
    renderer: Renderer,
    reading: ReadOptions,
    ledger: Ledger,
    *,
    options: PrepareOptions,
    formatting_func: Callable[[Any], Any] | None,
) -> Iterator[tuple[Example, list[View]]]:
    """Reads and plans the rows of a chunk; rows that cannot be used go to the ledger."""
    for source, row in chunk:
        try:
            shaped = row if formatting_func is None else _as_row(formatting_func(row), options.text_field)
            example = read_example(shaped, source, reading, format=options.format)
            yield example, renderer.plan(example)
        except RowError as error:
            ledger.drop(source, error.reason, error.detail)


def _as_row(result: Any, text_field: str) -> Any:
    """What a formatting function may return, as a row."""
    if isinstance(result, str):
        return {text_field: result}
    if isinstance(result, list) and result and all(isinstance(item, Mapping) for item in result):
        return {"messages": result}
    if isinstance(result, Mapping):
        return result
    raise RowError("formatting_func", f"must return a text, messages or a row; returned {type(result).__name__}")


def _kept(views: list[Rendered], options: PrepareOptions, ledger: Ledger) -> list[Rendered]:
    """The views of one row that are trained, after the length policy; counts the row once."""
    source = views[0].source
    kept = [fitted for view in views if (fitted := _fitted(view, options)) is not None and fitted.trained]
    too_long = max(map(len, views)) > (options.max_length or np.inf)
    if not kept:
        ledger.drop(source, "overlong" if too_long else "nothing to train", f"{max(map(len, views))} tokens")
        return []
    ledger.rows_trained += 1
    if too_long:
        what = "views dropped" if options.overlong == "drop" else "cut at the end"
        ledger.cut(source, f"overlong: {what}", f"{max(map(len, views))} tokens, max_length {options.max_length}")
    if views[0].views > 1:
        ledger.conversations_split_into_views += 1
    return kept


def _fitted(view: Rendered, options: PrepareOptions) -> Rendered | None:
    """The view within the length limit, or None where it is to be dropped."""
    limit = options.max_length
    if limit is None or len(view) <= limit:
        return view
    if options.overlong == "drop":
        return None
    if options.overlong == "error":
        raise DataError(
            f"{view.source}: {len(view)} tokens, more than max_length {limit}.",
            fix="raise max_length, or set overlong=drop or overlong=truncate",
        )
    return Rendered(
        input_ids=view.input_ids[:limit],
        weights=view.weights[:limit],
        source=view.source,
        turns=tuple(turn for turn in view.turns if turn.end <= limit),
        views=view.views,
    )


def _stop_on_bad_rows(ledger: Ledger, options: PrepareOptions) -> None:
    mended_by_length = {"overlong"}
    bad = {reason: n for reason, n in ledger.rows_dropped.items() if reason not in mended_by_length}
    if not bad or options.bad_rows == "drop":
        return
    shown = [example for example in ledger.examples if example["reason"] in bad]
    lines = [f"  {e['source']}: {e['reason']}{': ' + e['detail'] if e['detail'] else ''}" for e in shown[:5]]
    total = sum(bad.values())
    more = f"\n  ... and {total - len(lines):,} more" if total > len(lines) else ""
    raise DataError(
        f"{total:,} of {ledger.rows_in:,} rows cannot be trained on:\n" + "\n".join(lines) + more,
        fix="mend these rows, or leave them out with data.bad_rows=drop (they stay in the ledger)",
    )


def _finish(
    documents: list[Rendered], tokenizer: Any, options: PrepareOptions, ledger: Ledger, template: Template | None
) -> Prepared:
    if not documents:
        raise DataError(
            f"No row is left to train on.\n{ledger.summary()}",
            fix="raise max_length or mend the data; `overlong` rows are longer than max_length",
        )
    table = TokenTable(documents)
    stops = _count_stops(documents)
    for token, n in stops.items():
        ledger.stop_tokens[tokenizer.decode([token])] += n
    ledger.documents, ledger.tokens = len(table), len(table.input_ids)
    ledger.trained_tokens = int(np.count_nonzero(table.weights))
    rows = one_by_one(len(table))
    if options.packing and options.max_length:
        rows = pack_best_fit(table.lengths, options.max_length)
        ledger.fill = fill_rate(table.lengths, rows, options.max_length)
    ledger.packed_rows = len(rows)
    if isinstance(template, PlainTemplate):
        ledger.notes.append(
            "the plain template is encoded message by message; serve it with honed, which does the same"
        )
    _assert_conserved(rows, table)
    return Prepared(rows=PackedRows(table, rows), ledger=ledger, stop_ids=tuple(stops))


def _count_stops(documents: list[Rendered]) -> dict[int, int]:
    """Last id of the trained turns -> how often, most frequent first."""
    stops: dict[int, int] = {}
    for document in documents:
        for turn in document.turns:
            stops[turn.stop] = stops.get(turn.stop, 0) + 1
    return dict(sorted(stops.items(), key=lambda item: -item[1]))


def _assert_conserved(rows: list[list[int]], table: TokenTable) -> None:
    """Trained tokens in = trained tokens out: every document stands in exactly one row."""
    if sorted(d for row in rows for d in row) != list(range(len(table))):
        raise AssertionError("packing lost or repeated a document; this is a bug in honed")


def _chunks(rows: Iterable[SourcedRow], size: int) -> Iterator[list[tuple[Source, Any]]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _length(data: Any) -> int | None:
    """How many rows `data` holds, where that is known before reading; names of files do not tell."""
    if not hasattr(data, "__len__") or isinstance(data, (str, Path)):
        return None
    named = isinstance(data, Sequence) and isinstance(next(iter(data), None), (str, Path))
    return None if named else len(data)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(f"{name} is {value!r}.", fix=f"choose one of: {', '.join(known)}")
