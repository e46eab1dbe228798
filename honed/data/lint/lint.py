"""Reads every row once, as training does, and finds problems in the data before training.

rows -> Example -> Rendered -> length policy -> ledger       the same parts, and the same ledger, as `prepare`
           |          |
           |          `-- stop tokens, lengths
           `-- text, roles, tool calls; duplicates; what differs from the rest
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from honed.data.encode.render import Rendered
from honed.data.example import Example, RowError, Source, Tokens
from honed.data.ledger import Ledger
from honed.data.lint.calls import wrapped_twice
from honed.data.lint.kinds import Finding, Findings
from honed.data.lint.repeats import Known, Repeats
from honed.data.lint.rows import row_faults, said, thought_and_called
from honed.data.lint.spread import Spread, length_findings
from honed.data.lint.text import ControlTokens, text_faults
from honed.data.lint.tokens import TokenCheck
from honed.data.prepare.options import PrepareOptions, reading_of
from honed.data.read.columns import Columns, beside
from honed.data.read.formats import formats_of, read_example
from honed.data.read.repeated_keys import repeated_keys
from honed.data.read.sources import files_of, read_rows
from honed.progress import progress

ROWS_AT_A_TIME = 1000
NO_MODEL = (
    "No model was named, so nothing that needs tokens was checked: "
    "the chat template, lengths in tokens, stop tokens, control tokens."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRow:
    """A row kept for display.

    Attributes:
        place: its index in the data, from 0.
        example: None if it could not be read.
        views: its documents before the length policy; empty without a tokenizer.
        dropped: why it is not trained; "" if it is.
        faults: kinds of problems in this row by itself (duplicates and outliers are found among all rows).
    """

    place: int
    source: Source
    example: Example | None = None
    views: tuple[Rendered, ...] = ()
    dropped: str = ""
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check found.

    Attributes:
        ledger: the ledger of `prepare`; without a tokenizer, only what reading determines.
        findings: sorted by severity.
        lengths: each document's length before the length policy, in `unit`.
        fills: tokens per packed row (whether the options pack or not); empty without max_length.
        scripts: script -> rows.
        notes: what was skipped, and why.
        kept: the requested rows.
    """

    ledger: Ledger
    findings: tuple[Finding, ...]
    lengths: np.ndarray
    unit: str
    fills: np.ndarray
    scripts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    kept: tuple[SeenRow, ...] = ()


def check(
    files: Any,
    options: PrepareOptions,
    *,
    tokenizer: Any = None,
    stop_ids: Sequence[int] = (),
    evaluation: Any = None,
    keep: Container[int] = (),
) -> Checked:
    """Checks rows in one pass. Bad and overlong rows do not raise errors; they become findings.

    Args:
        files: whatever `sources.read_rows` reads.
        options: as for `prepare`.
        tokenizer: if None, everything that needs tokens is skipped, and the notes say so.
        stop_ids: stop ids in the model's generation config, besides the tokenizer's EOS.
        evaluation: rows that must not occur in `files`.
        keep: indices in the data, from 0, of the rows to return.

    Raises:
        DataError: a file cannot be read.
        TemplateError, RecipeError: the template cannot be used with this tokenizer.
    """
    tokens = TokenCheck(tokenizer, options, stop_ids) if tokenizer is not None else None
    running = _Running(options, tokens, keep)
    if evaluation is not None:
        running.repeats = Repeats(Known.of(running.usable(evaluation)))
    rows = progress(read_rows(files), desc="Checking data", unit="row")
    while chunk := list(islice(rows, ROWS_AT_A_TIME)):
        running.see(chunk)
    for source, key in repeated_keys(files_of(files) or ()):
        running.findings.add("repeated_key", source, f"`{key}` appears more than once")
    return running.finish()


class _Running:
    """A check in progress."""

    def __init__(self, options: PrepareOptions, tokens: TokenCheck | None, keep: Container[int]) -> None:
        self.options, self.tokens, self.keep = options, tokens, keep
        self.reading = tokens.reading if tokens else reading_of(options)
        self.columns = Columns(self.reading, options.format)
        self.control = ControlTokens.of(tokens.special if tokens else ())
        self.ledger, self.findings = Ledger(), Findings()
        self.repeats, self.spread = Repeats(None), Spread()
        self.lengths: list[int] = []
        self.sources: list[Source] = []  # parallel to the lengths
        self.kept: dict[int, SeenRow] = {}
        self.token_rows = 0

    def usable(self, data: Any) -> Iterator[tuple[Source, Example]]:
        """Yields the usable rows of another file."""
        for source, row in read_rows(data):
            try:
                yield source, read_example(row, source, self.reading, format=self.options.format)
            except RowError:
                continue

    def see(self, chunk: Sequence[tuple[Source, Any]]) -> None:
        """Checks some rows."""
        self.columns.count(chunk, self.ledger)
        self._formats(chunk)
        examples = [read for item in chunk if (read := self._read(*item)) is not None]
        rows = [(example.source, example) for _, example in examples]
        for place, example in examples:
            self._look(place, example)
        self.repeats.see(rows, self.findings)
        self.spread.see(rows)
        if self.tokens is not None:
            self._tokens(self.tokens, examples)
        else:
            self.ledger.rows_trained += len(examples)
            self.lengths += [sum(map(len, said(example))) for _, example in examples]
            self.sources += [source for source, _ in rows]

    def finish(self) -> Checked:
        """Returns the findings among all rows."""
        self.repeats.finish(self.findings)
        self.spread.finish(self.findings)
        lengths, unit = np.array(self.lengths, dtype=np.int64), "tokens" if self.tokens else "characters"
        length_findings(lengths, self.sources, unit, self.findings)
        fills = self.tokens.finish(self.ledger) if self.tokens else np.empty(0, dtype=np.int64)
        milder = {"unusable"} if self.options.bad_rows == "drop" else set()
        return Checked(
            ledger=self.ledger,
            findings=self.findings.sorted(milder=milder),
            lengths=lengths,
            unit=unit,
            fills=fills,
            scripts=dict(self.spread.scripts.counts.most_common()),
            notes=tuple(self._notes()),
            kept=tuple(self.kept.values()),
        )

    def _formats(self, chunk: Sequence[tuple[Source, Any]]) -> None:
        """Finds rows with the columns of several formats."""
        if self.options.format != "auto" or not self.ledger.formats_beside:
            return
        for source, row in chunk:
            names = formats_of(row, self.reading) if isinstance(row, Mapping) else []
            if len(names) > 1:
                self.findings.add("several_formats", source, subject=f"trained as {beside(names)}")

    def _read(self, source: Source, row: Any) -> tuple[int, Example] | None:
        place = self.ledger.rows_in
        self.ledger.rows_in += 1
        try:
            example = read_example(row, source, self.reading, format=self.options.format)
        except RowError as error:
            self._drop(place, source, error)
            return None
        if place in self.keep:
            self.kept[place] = SeenRow(place=place, source=source, example=example)
        return place, example

    def _drop(self, place: int, source: Source, error: RowError) -> None:
        self.ledger.drop(source, error.reason, error.detail)
        self.findings.add("unusable", source, error.detail, subject=error.reason)
        if place in self.keep:
            row = self.kept.get(place) or SeenRow(place=place, source=source)
            self.kept[place] = replace(row, dropped=str(error), faults=(*row.faults, "unusable"))

    def _look(self, place: int, example: Example) -> None:
        """Finds problems in a row's text and shape."""
        self.token_rows += isinstance(example, Tokens)
        text = "\n".join([*said(example), *thought_and_called(example)])
        faults = dict.fromkeys(
            (kind, subject, detail)
            for kind, subject, detail in (*text_faults(text), *row_faults(example, self.control))
        )
        met: set[tuple[str, str]] = set()
        for kind, subject, detail in faults:
            if (kind, subject) not in met:  # a row counts once, however often it has the problem
                met.add((kind, subject))
                self.findings.add(kind, example.source, detail, subject=subject)
        self._mark(place, *(kind for kind, _ in met))

    def _mark(self, place: int, *kinds: str) -> None:
        if kinds and place in self.kept:
            row = self.kept[place]
            self.kept[place] = replace(row, faults=tuple(dict.fromkeys((*row.faults, *kinds))))

    def _tokens(self, tokens: TokenCheck, examples: Sequence[tuple[int, Example]]) -> None:
        planned = []
        for place, example in examples:
            try:
                plan = tokens.plan(example)
            except RowError as error:
                self._drop(place, example.source, error)
            else:
                self.ledger.rows_with_control_tokens += tokens.renderer.spells_control_tokens(plan)
                planned.append((place, example, plan))
        texts = [(example, plan) for _, example, plan in planned]
        borders, rendered = tokens.borders.find(texts), tokens.encode(texts)
        for (place, example, plan), views, border in zip(planned, rendered, borders, strict=True):
            if tag := wrapped_twice(example, (view.text for view in plan)):
                self.findings.add("wrapped_result", example.source, f"{tag} stands twice")
                self._mark(place, "wrapped_result")
            if border:
                self.findings.add("border", example.source, border)
                self._mark(place, "border")
            self.ledger.rows_with_own_bos += any(view.brings_opening for view in views)
            self.ledger.rows_with_own_eos += any(view.brings_closing for view in views)
            self.lengths += map(len, views)
            self.sources += [example.source] * len(views)
            faults, dropped = tokens.settle(views, self.ledger, self.findings)
            if place in self.keep:
                self.kept[place] = replace(self.kept[place], views=tuple(views), dropped=dropped)
                self._mark(place, *faults)

    def _notes(self) -> Iterator[str]:
        if self.tokens is None:
            yield NO_MODEL
        elif self.options.train_on == "all":
            yield "With train_on=all there are no trained turns whose end could be checked."
        if self.tokens is not None and (note := self.tokens.borders.note()):
            yield note
        if self.token_rows:
            yield f"Text, roles and repetition were not checked in rows that hold token ids ({self.token_rows:,})."
