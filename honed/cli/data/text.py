"""The output of `honed data check`: findings as text and JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from honed.cli.data.reading import Plan
from honed.data.lint.kinds import SEVERITIES, Finding
from honed.data.lint.lint import Checked
from honed.data.lint.view import one_line, visible
from honed.quantities import counted

WIDTH = 100
PLURALS = {"error": "Errors", "warning": "Warnings", "hint": "Hints"}


def fails(checked: Checked, fail_on: str) -> bool:
    """Whether a finding is at least as severe as `fail_on`."""
    grave = SEVERITIES[: SEVERITIES.index(fail_on) + 1] if fail_on in SEVERITIES else ()
    return any(finding.kind.severity in grave for finding in checked.findings)


def as_json(checked: Checked, plan: Plan) -> str:
    """All findings as one JSON object in ASCII (so that no row can control the terminal)."""
    counts = {severity: sum(f.kind.severity == severity for f in checked.findings) for severity in SEVERITIES}
    return json.dumps(
        {
            "files": list(plan.files),
            "evaluation": plan.evaluation,
            "model": plan.model,
            "ledger": checked.ledger.as_dict(),
            "found": counts,
            "findings": [finding.as_dict() for finding in checked.findings],
            "lengths": length_facts(checked),
            "scripts": checked.scripts,
            "notes": [*checked.notes, *plan.notes],
        }
    )


def as_text(checked: Checked, plan: Plan) -> str:
    """The ledger, the findings by severity, and what was not checked."""
    by = f" for {plan.model}" if plan.model else ""
    lines = [f"{', '.join(plan.files)}{by}", ""]
    lines += checked.ledger.summary().splitlines() if plan.model else [_plain_summary(checked)]
    if facts := length_facts(checked):
        lines.append(
            f"{facts['unit']} of a row: half have at most {facts['median']:,}, "
            f"99% at most {facts['p99']:,}, the longest {facts['longest']:,}"
        )
    for severity in SEVERITIES:
        kinds = dict.fromkeys(f.kind.name for f in checked.findings if f.kind.severity == severity)
        lines += ["", PLURALS[severity]] if kinds else []
        for name in kinds:
            lines += _of_one_kind([finding for finding in checked.findings if finding.kind.name == name])
    lines += [
        "",
        *([] if checked.findings else ["Nothing was found."]),
        *(f"note: {note}" for note in (*checked.notes, *plan.notes)),
    ]
    return "\n".join(visible(line) for line in lines).rstrip()


def length_facts(checked: Checked) -> dict[str, Any]:
    """The distribution of the rows' lengths; empty without rows."""
    import numpy as np

    if not len(checked.lengths):
        return {}
    median, high = np.quantile(checked.lengths, [0.5, 0.99], method="higher")
    return {
        "unit": checked.unit,
        "median": int(median),
        "p99": int(high),
        "longest": int(checked.lengths.max()),
    }


def _plain_summary(checked: Checked) -> str:
    ledger = checked.ledger
    rows = counted(ledger.rows_in, "row")
    lines = [f"{rows} in, {ledger.rows_trained:,} can be read, {ledger.rows_dropped.total():,} cannot"]
    return "\n".join(lines + [f"  {n:,}: {reason}" for reason, n in ledger.rows_dropped.most_common()])


def _of_one_kind(found: list[Finding]) -> Iterator[str]:
    """Lines for findings of one kind; its meaning and fix are printed once."""
    kind = found[0].kind
    yield ""
    yield f"  {kind.name.replace('_', ' ')}: {kind.says}"
    for finding in found:
        yield f"  {finding.count:>9,}  {finding.subject or 'rows'}"
        # the detail of an unusable row says how to fix it: show it whole and on one line, to be copied
        most = 2000 if kind.name == "unusable" else 110
        before = ""
        for spot in finding.spots:
            detail = one_line(spot.detail, most)
            yield f"{'':13}{spot.source}{'  ' + detail if detail != before else ''}"
            before = detail
    yield from textwrap.wrap(f"fix: {kind.fix}", WIDTH, initial_indent=" " * 13, subsequent_indent=" " * 18)
