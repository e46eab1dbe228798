"""Rows that repeat other rows, exactly or nearly, in the same data or in the evaluation file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from honed.data.example import Example, Source
from honed.data.lint.kinds import EXAMPLES, Findings, Spot
from honed.data.lint.rows import body, question
from honed.data.mix.minhash import PLACES, near_groups, nearest_in, signatures

SHORTEST = 40  # characters; any two shorter texts may be similar
Row = tuple[Source, Example]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Rows of the evaluation file: sources of each text and question, and signatures to find similar rows."""

    bodies: dict[str, Source]
    questions: dict[str, Source]
    signed: np.ndarray
    sources: tuple[Source, ...]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Known:
        """Collects these rows."""
        bodies: dict[str, Source] = {}
        questions: dict[str, Source] = {}
        for source, example in rows:
            bodies.setdefault(body(example), source)
            questions.setdefault(question(example), source)
        bodies.pop("", None)
        questions.pop("", None)
        long = [text for text in bodies if len(text) >= SHORTEST]
        return cls(
            bodies=bodies,
            questions=questions,
            signed=signatures(long),
            sources=tuple(bodies[text] for text in long),
        )


class Repeats:
    """Collects hashes and signatures of rows, no texts; `known` holds the rows of the evaluation file, if any."""

    def __init__(self, known: Known | None) -> None:
        self._known = known
        self._first: dict[int, Source] = {}  # hash of a text -> its first source
        self._sources: list[Source] = []
        self._signed: list[np.ndarray] = []

    def see(self, rows: Sequence[Row], findings: Findings) -> None:
        """Compares these rows with all earlier ones and with the evaluation file."""
        fresh: list[tuple[Source, str]] = []
        for source, example in rows:
            text = body(example)
            if not text:
                continue
            known = self._overlaps(source, text, example, findings)
            first = self._first.setdefault(hash(text), source)
            if first is not source:
                findings.add("duplicate", source, f"same as {first}")
            elif len(text) >= SHORTEST:
                fresh.append((source, "" if known else text))
        self._sign(fresh, findings)

    def finish(self, findings: Findings) -> None:
        """Finds near-duplicates among all rows seen."""
        if not self._signed:
            return
        groups = near_groups(np.concatenate(self._signed))
        later = np.flatnonzero(groups != np.arange(len(groups)))
        spots = [
            Spot(source=str(self._sources[n]), detail=f"like {self._sources[groups[n]]}") for n in later[:EXAMPLES]
        ]
        if spots:
            findings.add_counted("near_duplicate", len(later), spots)

    def _overlaps(self, source: Source, text: str, example: Example, findings: Findings) -> bool:
        """Whether the evaluation file has this text or this question; adds a finding if so."""
        if self._known is None:
            return False
        if there := self._known.bodies.get(text):
            findings.add("eval_overlap", source, f"same as {there}")
        elif there := self._known.questions.get(question(example)):
            findings.add("eval_near", source, f"asks what {there} asks", subject="the same question")
        return there is not None

    def _sign(self, fresh: Sequence[tuple[Source, str]], findings: Findings) -> None:
        """Computes signatures of new texts; an empty text marks a row that is in the evaluation file already."""
        signed = signatures([text for _, text in fresh]).reshape(-1, PLACES)
        named = np.array([bool(text) for _, text in fresh], dtype=bool)
        if self._known is not None:
            found = nearest_in(self._known.signed, signed)
            for n in np.flatnonzero((found >= 0) & named).tolist():
                there = self._known.sources[found[n]]
                findings.add("eval_near", fresh[n][0], f"like {there}", subject="a similar row")
        self._signed.append(signed[named])
        self._sources += [source for source, text in fresh if text]
