"""Every row accounted for: trained, cut or dropped, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from honed.data.example import Source
from honed.quantities import counted

EXAMPLES_PER_REASON = 3
COLUMNS_NAMED = 10
_SUMS = (
    "rows_in", "rows_trained", "conversations_split_into_views", "rows_with_control_tokens", "rows_with_own_bos",
    "rows_with_own_eos",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Counts of a dataset's preparation. `rows_in` is always `rows_trained` + the sum of `rows_dropped`.

    Attributes:
        rows_in: rows read.
        rows_trained: rows with at least one trained token.
        rows_dropped: reason -> rows that are not trained at all.
        rows_cut: reason -> trained rows that lost tokens.
        conversations_split_into_views: rows that became several documents, because the history in a single text would
            differ from the history at inference.
        rows_with_control_tokens: rows whose text spells control tokens; these are encoded as plain text.
        rows_with_own_bos: text rows that already begin with BOS, so that the tokenizer adds none.
        rows_with_own_eos: text rows that already end with EOS and white space, so that none is added.
        documents: documents to train on, before packing.
        documents_with_two_bos: documents that begin with two BOS, because their rows do.
        tokens, trained_tokens: totals over all documents.
        packed_rows: rows after packing; equals `documents` without packing.
        fill: fraction of the packed rows' capacity that holds tokens; None without packing.
        padding_share: fraction of the batches' positions that is padding, over an epoch; 0 for flat batches.
        stop_tokens: token at the end of trained turns -> number of turns.
        by_source: name of a source -> its rows_in, rows_trained, documents, tokens and trained_tokens; only if several
            sources are mixed.
        evaluation: `as_dict` of the held-out rows, if a share of the rows was held out.
        columns_unused: column that is not read -> rows that have it.
        formats_beside: format that rows are read in, and other formats whose columns they have -> rows.
        examples: a few rows for each reason.
        notes: other notes for the user.
    """

    rows_in: int = 0
    rows_trained: int = 0
    rows_dropped: Counter[str] = field(default_factory=Counter)
    rows_cut: Counter[str] = field(default_factory=Counter)
    conversations_split_into_views: int = 0
    rows_with_control_tokens: int = 0
    rows_with_own_bos: int = 0
    rows_with_own_eos: int = 0
    documents: int = 0
    documents_with_two_bos: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    packed_rows: int = 0
    fill: float | None = None
    padding_share: float = 0.0
    stop_tokens: Counter[str] = field(default_factory=Counter)
    by_source: dict[str, dict[str, int]] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    columns_unused: Counter[str] = field(default_factory=Counter)
    formats_beside: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop(self, source: Source, reason: str, detail: str = "") -> None:
        """Counts a row that is not trained."""
        self.rows_dropped[reason] += 1
        self._example(source, reason, detail, self.rows_dropped[reason])

    def cut(self, source: Source, reason: str, detail: str = "") -> None:
        """Counts a row that is trained but lost tokens."""
        self.rows_cut[reason] += 1
        self._example(source, reason, detail, self.rows_cut[reason])

    def add(self, other: Ledger) -> None:
        """Adds the counts of another ledger of the same data; its examples are appended."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        before = {**self.rows_dropped, **self.rows_cut}
        for name in ("rows_dropped", "rows_cut", "columns_unused", "formats_beside"):
            getattr(self, name).update(getattr(other, name))
        for example in other.examples:
            seen = before[example["reason"]] = before.get(example["reason"], 0) + 1
            if seen <= EXAMPLES_PER_REASON:
                self.examples.append(example)

    def notes_of_counts(self) -> list[str]:
        """Returns notes on the counts of columns and tokens."""
        return [*self._format_notes(), *self.end_notes(), *self._control_token_notes()]

    def _control_token_notes(self) -> list[str]:
        if not self.rows_with_control_tokens:
            return []
        return [
            f"control tokens in the text of {counted(self.rows_with_control_tokens, 'row')} were encoded as plain "
            "text. A token of your own that messages should hold as a token must not be a special one: "
            "tokenizer.add_tokens([...]) alone"
        ]

    def _format_notes(self) -> list[str]:
        """Returns notes on rows with the columns of several formats, and how to choose one."""
        return [
            f"{counted(rows, 'row has', 'rows have')} the columns of several formats and "
            f"{'is' if rows == 1 else 'are'} trained as {formats}: "
            "data.format=NAME chooses (from Python: data_format)"
            for formats, rows in self.formats_beside.items()
        ]

    def end_notes(self) -> list[str]:
        """Returns notes on texts with their own BOS or EOS, and on documents that begin with two BOS."""
        notes = []
        if self.rows_with_own_bos:
            notes.append(
                f"texts of {counted(self.rows_with_own_bos, 'row')} begin with BOS already: the tokenizer's own was "
                "left out, so that they have only one, as a template's text has when it is served"
            )
        if self.rows_with_own_eos:
            notes.append(
                f"texts of {counted(self.rows_with_own_eos, 'row')} end with EOS and white space: no second EOS was "
                "added; generation stops at theirs"
            )
        if self.documents_with_two_bos:
            notes.append(
                f"two BOS at the beginning of {counted(self.documents_with_two_bos, 'document')}, as the rows have "
                "them: take one out, or pass messages instead of the text a template made of them"
            )
        return notes

    def as_dict(self) -> dict[str, Any]:
        """Returns the contents of `ledger.json`."""
        return {
            name: dict(value) if isinstance(value, Counter) else value
            for name in self.__slots__
            if (value := getattr(self, name)) is not None
        }

    def summary(self) -> str:
        """Returns a few lines for the terminal."""
        lines = [
            f"{counted(self.rows_in, 'row')} in, {self.rows_trained:,} trained, {self.rows_dropped.total():,} dropped"
        ]
        lines += [f"  dropped {n:,}: {reason}" for reason, n in self.rows_dropped.most_common()]
        lines += [f"  cut {n:,}: {reason}" for reason, n in self.rows_cut.most_common()]
        if self.conversations_split_into_views:
            lines.append(f"  {counted(self.conversations_split_into_views, 'conversation')} became one view per answer")
        share = self.trained_tokens / self.tokens if self.tokens else 0.0
        lines.append(f"{counted(self.tokens, 'token')}, {self.trained_tokens:,} of them trained ({share:.0%})")
        if self.fill is not None:
            lines.append(f"{counted(self.packed_rows, 'packed row')}, {self.fill:.1%} full")
        if self.stop_tokens:
            ends = ", ".join(f"{token!r} ({n:,})" for token, n in self.stop_tokens.most_common())
            lines.append(f"trained turns end with {ends}")
        lines += [
            f"  {name}: {counted(n['rows_trained'], 'row')}, {counted(n['tokens'], 'token')}, "
            f"{n['trained_tokens']:,} of them trained"
            for name, n in self.by_source.items()
        ]
        if self.evaluation is not None:
            held = self.evaluation
            scored = counted(held["trained_tokens"], "scored token")
            lines.append(f"held out for evaluation: {counted(held['rows_in'], 'row')}, {scored}")
        if self.columns_unused:
            named = ", ".join(
                f"{name} ({counted(n, 'row')})" for name, n in self.columns_unused.most_common(COLUMNS_NAMED)
            )
            more = len(self.columns_unused) - COLUMNS_NAMED
            lines.append(f"columns not used: {named}" + (f" and {more:,} more" if more > 0 else ""))
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def _example(self, source: Source, reason: str, detail: str, seen: int) -> None:
        if seen <= EXAMPLES_PER_REASON:
            self.examples.append({"source": str(source), "reason": reason, "detail": detail})
