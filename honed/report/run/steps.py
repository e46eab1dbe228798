"""The section of a run's page about its worst steps and their rows. Pure functions of the record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from honed.quantities import counted, short_text
from honed.report.json_values import finite, mapping, text_of
from honed.report.ledger_section import plain_text
from honed.report.markup import Html, join, tag
from honed.report.run.record import SavedRun


def steps_section(run: SavedRun) -> Html:
    """Steps that were not taken, then those with the highest losses, each with its rows; empty if there are none."""
    missed = {plain_text(step.get("step")) for step in run.not_taken}
    worst = [step for step in run.worst_steps if plain_text(step.get("step")) not in missed]
    if not worst and not run.not_taken:
        return join([])
    parts = []
    if run.not_taken:
        words = "Their loss or gradient was not finite, so they changed no weights."
        parts += [tag("h3", "Steps that were not taken"), tag("p", words, class_="rule"), _steps(run.not_taken)]
    if worst:
        parts += [tag("h3", "The highest losses of all steps"), _steps(worst)]
    return tag("section", tag("h2", "The worst steps"), join(parts))


def _steps(steps: Iterable[Mapping[str, object]]) -> Html:
    return join(tag("details", tag("summary", _summary(step)), _rows(step)) for step in steps)


def _summary(step: Mapping[str, object]) -> str:
    loss, rows = step.get("loss", step.get("losses")), step.get("rows")
    number = finite(loss)
    shown = plain_text(loss) if number is None else short_text(number)
    count = f", {counted(len(rows), 'row')}" if isinstance(rows, list) else ""
    return f"Step {plain_text(step.get('step'))}: loss {shown}{count}"


def _rows(step: Mapping[str, object]) -> Html:
    rows = step.get("rows")
    if not isinstance(rows, list) or not rows:
        return tag("p", "Which rows were in it is not known: they were streamed, or not prepared by honed.")
    return tag("ul", join(_row(mapping(row)) for row in rows))


def _row(row: Mapping[str, object]) -> Html:
    fault = tag("b", " at fault") if row.get("at_fault") is True else ""
    text = tag("div", text_of(row.get("text")) or "", class_="text", dir="auto")
    return tag("li", "row ", plain_text(row.get("row")), fault, text)
