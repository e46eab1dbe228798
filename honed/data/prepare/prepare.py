"""Turns rows into packed rows and a ledger: reading, rendering, the length policy and packing in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from honed.collector import fewer_collections
from honed.data.batch.pack import fill_rate, one_by_one, pack_best_fit, pack_wrapped
from honed.data.batch.prefix import pack_shared
from honed.data.batch.table import PackedRows, TokenTable
from honed.data.encode.empty_reasoning import EmptyReasoning, note_of
from honed.data.ledger import Ledger
from honed.data.mix.mixture import LEFT_OUT_BY_CAP, LEFT_OUT_BY_WEIGHT, Mixture, Part, as_mixture
from honed.data.prepare.kept import KeptRows
from honed.data.prepare.nothing_left import nothing_left
from honed.data.prepare.options import PrepareOptions, part_options
from honed.data.prepare.reader import NOTHING_FITS, RowReader
from honed.data.prepare.spelled_end import notes_on_ends
from honed.data.prepare.workers import can_fork, kept_rows, kept_rows_by_workers
from honed.data.read.sources import files_of, unread_rows
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.plain import PLAIN_SYSTEM_PROMPT, PlainTemplate
from honed.data.templates.view import Template
from honed.errors import DataError, RecipeError
from honed.progress import Progress
from honed.quantities import counted

MUCH_TEXT = 4 << 20  # bytes
BYTES_OF_A_ROW = 500  # a typical row, if bytes are not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What training reads.

    Attributes:
        rows: the packed rows.
        ledger: what happened to every source row.
        stop_ids: ids of the tokens that end trained turns, most frequent first; generation must stop at them.
    """

    rows: PackedRows
    ledger: Ledger
    stop_ids: tuple[int, ...]


@fewer_collections()
def prepare(
    data: Any,
    tokenizer: Any,
    options: PrepareOptions,
    *,
    formatting_func: Callable[[Any], Any] | None = None,
    desc: str = "Preparing data",
    workers: int = 1,
) -> Prepared:
    """Turns source rows into packed rows. Neither `data` nor `tokenizer` is changed.

    Args:
        data: whatever `sources.read_rows` reads, or a `Mixture`.
        tokenizer: a transformers tokenizer.
        options: see `PrepareOptions`.
        formatting_func: row -> text, messages, a pair or another row (see `Formatting`); applied before the format is
            recognised.
        desc: text of the progress bar.
        workers: processes that read and render; the result does not depend on it. If rows can be read only once, or
            Python cannot fork safely (macOS, Windows), one is used.

    Raises:
        DataError: rows cannot be used (with `bad_rows="error"`), or no row is left.
        TemplateError: the chat template's spans cannot be verified; names the row. With `bad_rows="drop"` such rows
            are dropped, unless this affects every row of the first chunk.
    """
    mixture = as_mixture(data)
    ledger = Ledger()
    templates = [make_template(tokenizer, part_options(part, options)) for part in mixture.parts]
    kept = []
    for part, template in zip(mixture.parts, templates, strict=True):
        read = RowReader(tokenizer, template, part_options(part, options), formatting_func)
        kept.append(_read_part(mixture, part, read, ledger, desc=desc, workers=workers))
    stop_on_bad_rows(ledger, options)
    times = mixture.times(list(map(len, kept)))
    parts = [
        _trained(rows, repeats, part.name, ledger)
        for part, rows, repeats in zip(mixture.parts, kept, times, strict=True)
    ]
    if len(parts) == 1:
        ledger.by_source.clear()  # the ledger itself has these counts
    return _finish(parts, tokenizer, options, ledger, templates)


def _read_part(mixture: Mixture, part: Part, read: RowReader, ledger: Ledger, *, desc: str, workers: int) -> KeptRows:
    """Returns the rows of one source that can be trained; counts those that cannot."""
    before = ledger.rows_in
    if part.cap is None and _is_much(part.data):
        read.get_ready()
    with Progress(desc=desc, total=_length(part.data), unit="row") as bar:

        def advance() -> None:
            bar.advance(ledger.rows_in - before - bar.count)

        if workers > 1 and can_fork() and part.cap is None and not isinstance(part.data, Iterator):
            kept = kept_rows_by_workers(lambda: unread_rows(part.data), read, ledger, advance, workers)
        else:
            kept = kept_rows(mixture.rows(part, ledger), read, ledger, advance)
    ledger.by_source[part.name] = {"rows_in": ledger.rows_in - before}
    return KeptRows.joined(kept)


def _is_much(data: Any) -> bool:
    """Whether there is enough text for calling `Encoder.get_ready` before the first row to pay off."""
    files = files_of(data)
    if files is not None:
        return sum(path.stat().st_size for path in files if path.is_file()) >= MUCH_TEXT
    return (_length(data) or 0) * BYTES_OF_A_ROW >= MUCH_TEXT


def _trained(rows: KeptRows, times: np.ndarray, name: str, ledger: Ledger) -> KeptRows:
    """Returns the rows of one source in one epoch; counts each row once."""
    for row in np.flatnonzero(times == 0).tolist():
        ledger.drop(rows.source(row), LEFT_OUT_BY_WEIGHT)
    rows.repeated(np.minimum(times, 1)).count(ledger)
    documents = rows.repeated(times)
    ledger.by_source[name] |= {
        "rows_trained": int(np.count_nonzero(times)),
        "documents": len(documents.lengths),
        "tokens": len(documents.input_ids),
        "trained_tokens": int(np.count_nonzero(documents.weights)),
    }
    return documents


def make_template(tokenizer: Any, options: PrepareOptions) -> Template | None:
    """Creates the template that the options name; None if the tokenizer has none and the data may not need one.

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
        system = PLAIN_SYSTEM_PROMPT if options.system is None else options.system
        return PlainTemplate(system=system, masks=options.masks())
    if options.template != "auto":
        tokenizer = tokenizer_with_template(tokenizer, options.template)
    own = getattr(tokenizer, "chat_template", None)
    if not own:
        return None
    masks = options.masks()
    plain = PlainTemplate.from_jinja(own, masks=masks) if isinstance(own, str) else None
    return plain or JinjaTemplate(tokenizer, arguments=options.template_arguments, masks=masks)


def notes_of_templates(templates: Iterable[Template | None]) -> list[str]:
    """Returns the templates' notes for the user."""
    if not any(isinstance(template, PlainTemplate) for template in templates):
        return []
    return ["the plain template is encoded message by message; serve it with honed, which does the same"]


def tokenizer_with_template(tokenizer: Any, path: str) -> Any:
    """Returns a copy of the tokenizer with the template in this file."""
    import copy

    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError(f"template: no such file: {path}", fix="use 'auto', 'plain' or the path of a Jinja file")
    changed = copy.copy(tokenizer)
    changed.chat_template = file.read_text(encoding="utf-8")
    return changed


def stop_on_bad_rows(ledger: Ledger, options: PrepareOptions) -> None:
    """Raises DataError if unusable rows were dropped, unless `bad_rows="drop"`."""
    chosen = {"overlong", NOTHING_FITS, LEFT_OUT_BY_CAP, LEFT_OUT_BY_WEIGHT}
    bad = {reason: n for reason, n in ledger.rows_dropped.items() if reason not in chosen}
    if not bad or options.bad_rows == "drop":
        return
    shown = [example for example in ledger.examples if example["reason"] in bad]
    lines = [f"  {e['source']}: {e['reason']}{': ' + e['detail'] if e['detail'] else ''}" for e in shown[:5]]
    total = sum(bad.values())
    more = f"\n  ... and {total - len(lines):,} more" if total > len(lines) else ""
    raise DataError(
        f"{total:,} of {counted(ledger.rows_in, 'row')} cannot be trained on:\n" + "\n".join(lines) + more,
        fix="fix these rows, or leave them out with data.bad_rows=drop (they stay in the ledger)",
    )


def _finish(
    parts: Sequence[KeptRows],
    tokenizer: Any,
    options: PrepareOptions,
    ledger: Ledger,
    templates: Sequence[Template | None],
) -> Prepared:
    rows = KeptRows.joined(parts) if len(parts) > 1 else parts[0]
    if not len(rows):
        raise nothing_left(ledger, options)
    table = TokenTable.of(rows.input_ids, rows.weights, np.concatenate([[0], np.cumsum(rows.lengths)]))
    stop_ids = count_documents(table, rows.stops.tolist(), tokenizer, ledger)
    ledger.notes += ledger.notes_of_counts()
    if n := EmptyReasoning(tokenizer).count(table.input_ids, table.weights):
        ledger.notes.append(note_of(n, options.train_on))
    ledger.notes += notes_on_ends(templates, tokenizer, table)
    table, packed = _packed(table, options, ledger)
    ledger.packed_rows = len(packed)
    ledger.notes += notes_of_templates(templates)
    assert_conserved(packed, table, ledger.trained_tokens)
    return Prepared(rows=PackedRows(table, packed), ledger=ledger, stop_ids=stop_ids)


def _packed(table: TokenTable, options: PrepareOptions, ledger: Ledger) -> tuple[TokenTable, list[list[int]]]:
    """Returns the documents (parts of them if rows are wrapped), and which of them share a row."""
    if not options.packing or not options.max_length:
        return table, one_by_one(len(table))
    if options.packing_strategy == "wrapped":
        starts, rows = pack_wrapped(table.starts, options.max_length)
        lost = int(np.count_nonzero(table.weights[np.setdiff1d(starts[:-1], table.starts)]))
        table = table.recut(starts)
        ledger.trained_tokens -= lost
        if torn := len(table) - ledger.documents:
            ledger.notes.append(
                f"wrapped packing tore {counted(torn, 'document')}; "
                f"{counted(lost, 'trained token is', 'trained tokens are')} first after a tear and never predicted"
            )
    elif options.share_prefixes:
        rows, tokens = pack_shared(table, options.max_length)
        if shared := ledger.tokens - tokens:
            ledger.notes.append(
                f"{shared:,} of {counted(ledger.tokens, 'token')} repeat a prefix in their row: computed once"
            )
        ledger.fill = tokens / (len(rows) * options.max_length)
        return table, rows
    else:
        rows = pack_best_fit(table.lengths, options.max_length)
    ledger.fill = fill_rate(table.lengths, rows, options.max_length)
    return table, rows


def count_documents(table: TokenTable, stops: Iterable[int], tokenizer: Any, ledger: Ledger) -> tuple[int, ...]:
    """Adds documents, their tokens and the last tokens of their trained turns to the ledger.

    Returns:
        The ids in `stops`, most frequent first.
    """
    counts = Counter(stops)
    for token, n in counts.most_common():
        ledger.stop_tokens[tokenizer.decode([token])] += n
    ledger.documents += len(table)
    ledger.tokens += len(table.input_ids)
    ledger.trained_tokens += int(np.count_nonzero(table.weights))
    ledger.documents_with_two_bos += table.begin_twice_with(tokenizer.bos_token_id)
    return tuple(token for token, _ in counts.most_common())


def assert_conserved(rows: Sequence[Sequence[int]], table: TokenTable, trained: int) -> None:
    """Trained tokens in = trained tokens out: every document is in exactly one row, with all its trained tokens.

    Args:
        rows: document indices of each row.
        table: the documents that were packed.
        trained: the number of trained tokens before, minus those at which `wrapped` split documents.

    Raises:
        AssertionError: a token was lost or repeated.
    """
    placed = np.fromiter((document for row in rows for document in row), dtype=np.int64)
    if not np.array_equal(np.sort(placed), np.arange(len(table))):
        raise AssertionError("packing lost or repeated a document; this is a bug in honed")
    if (found := int(np.count_nonzero(table.weights))) != trained:
        raise AssertionError(f"packing made {found:,} of {trained:,} trained tokens; this is a bug in honed")


def _length(data: Any) -> int | None:
    """Returns the number of rows in `data` if it is known before reading; None for file names."""
    if not hasattr(data, "__len__") or isinstance(data, (str, Path)):
        return None
    named = isinstance(data, Sequence) and isinstance(next(iter(data), None), (str, Path))
    return None if named else len(data)
