"""Findings that need all rows: system prompts, scripts and lengths that differ from the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from honed.data.example import Example, Source
from honed.data.lint.kinds import EXAMPLES, Findings, Spot
from honed.data.lint.rows import answer, said, system_prompt
from honed.data.lint.text import script_of
from honed.data.lint.view import one_line

RARE = 0.02  # share of rows below which a script is rare
ENOUGH_ROWS = 20  # minimum to tell what is usual
MOST_SYSTEMS = 1000  # distinct system prompts counted one by one
FAR = 3.0  # interquartile ranges above the upper quartile, of log lengths
USUAL_ANSWER = 40  # characters: short answers are reported if the median is longer
SHORT_ANSWER = 3  # characters
SHOWN = 60  # characters of a system prompt


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts rows by one property, with the first sources of each value."""

    counts: Counter[str] = field(default_factory=Counter)
    spots: dict[str, list[Source]] = field(default_factory=dict)

    def add(self, value: str, source: Source) -> None:
        """Adds a row with this value."""
        self.counts[value] += 1
        seen = self.spots.setdefault(value, [])
        if len(seen) < EXAMPLES:
            seen.append(source)


@dataclass(slots=True)
class Spread:
    """Collects system prompts, scripts and answers over all rows."""

    systems: Tally = field(default_factory=Tally)
    scripts: Tally = field(default_factory=Tally)
    answers: list[int] = field(default_factory=list)
    short: list[tuple[Source, str]] = field(default_factory=list)

    def see(self, rows: Iterable[tuple[Source, Example]]) -> None:
        """Adds rows."""
        for source, example in rows:
            system = system_prompt(example)
            if system is not None and len(self.systems.counts) < MOST_SYSTEMS:
                self.systems.add(system, source)
            if script := script_of("\n".join(said(example))):
                self.scripts.add(script, source)
            text = answer(example)
            if text is not None:
                self.answers.append(len(text.strip()))
                if self.answers[-1] <= SHORT_ANSWER:
                    self.short.append((source, text.strip()))

    def finish(self, findings: Findings) -> None:
        """Adds findings for what is unusual."""
        system_findings(self.systems, findings)
        script_findings(self.scripts, findings)
        if self.short and len(self.answers) >= ENOUGH_ROWS and np.median(self.answers) > USUAL_ANSWER:
            spots = [Spot(source=str(source), detail=repr(text)) for source, text in self.short[:EXAMPLES]]
            findings.add_counted("short_answer", len(self.short), spots)


def system_findings(systems: Tally, findings: Findings) -> None:
    """Counts distinct system prompts, if there are several (having none counts as one)."""
    if len(systems.counts) < 2:
        return
    rows = systems.counts.total()
    at_least = " or more" if len(systems.counts) >= MOST_SYSTEMS else ""
    spots = [
        Spot(
            source=str(systems.spots[text][0]),
            detail=f"{count / rows:.0%} of rows: {repr(one_line(text, SHOWN)) if text.strip() else 'none'}",
        )
        for text, count in systems.counts.most_common(EXAMPLES)
    ]
    findings.add_counted("system_prompts", len(systems.counts), spots, subject=f"distinct prompts{at_least}")


def script_findings(scripts: Tally, findings: Findings) -> None:
    """Scripts used by very few rows."""
    rows = scripts.counts.total()
    if rows < ENOUGH_ROWS:
        return
    usual = ", ".join(
        f"{name} {count / rows:.0%}" for name, count in scripts.counts.most_common() if count >= RARE * rows
    )
    for name, count in scripts.counts.most_common():
        if count < RARE * rows:
            spots = [Spot(source=str(source), detail=f"usual here: {usual}") for source in scripts.spots[name]]
            findings.add_counted("rare_script", count, spots, subject=name)


def length_findings(lengths: np.ndarray, sources: Sequence[Source], unit: str, findings: Findings) -> None:
    """Rows whose length, in `unit`, is far above the upper quartile on a logarithmic scale."""
    if len(lengths) < ENOUGH_ROWS:
        return
    logs = np.log(np.maximum(lengths, 1))
    lower, upper = np.quantile(logs, [0.25, 0.75])
    limit = upper + FAR * max(upper - lower, np.log(1.5))
    far = np.flatnonzero(logs > limit)
    longest = far[np.argsort(-lengths[far], kind="stable")]
    half = int(np.median(lengths))
    spots = [
        Spot(source=str(sources[n]), detail=f"{lengths[n]:,} {unit}; half of the rows have at most {half:,}")
        for n in longest[:EXAMPLES]
    ]
    if spots:
        findings.add_counted("long_row", len(far), spots)
