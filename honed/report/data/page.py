"""One self-contained page about data before training: findings, what will be trained on, and rows to read.

    check(...) -> Checked -> render_data_page -> str -> write_data_page: a file

All text from the data is escaped, and control and invisible characters are written out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from honed.data.lint.kinds import SEVERITIES, Finding, Spot
from honed.data.lint.lint import Checked
from honed.data.lint.view import TokenViewer, visible
from honed.data.prepare.options import PrepareOptions
from honed.data.templates.view import special_tokens
from honed.quantities import count_text, counted, percent_text
from honed.report.data.charts import Histogram, histogram
from honed.report.data.rows import row_id, rows_section
from honed.report.ledger import SavedLedger, parse_ledger
from honed.report.ledger_section import ledger_section
from honed.report.markup import Html, join, tag
from honed.report.page import page, page_header, tile, write_page

FEW = 4  # up to this many kinds of findings are shown unfolded


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFacts:
    """What the page says about the settings of the check."""

    files: tuple[str, ...]
    options: PrepareOptions
    model: str | None = None
    command: str = ""


def write_data_page(target: Path, checked: Checked, facts: PageFacts, tokenizer: Any = None) -> Path:
    """Writes the page atomically and returns its path.

    Raises:
        RunError: it cannot be written.
    """
    html = render_data_page(checked, facts, tokenizer)
    return write_page(target, html, fix="name a file in a folder that exists")


def render_data_page(checked: Checked, facts: PageFacts, tokenizer: Any = None) -> str:
    """The whole page as HTML. Pure: the same check gives the same page."""
    viewer = None
    if tokenizer is not None:
        viewer = TokenViewer(tokenizer, tokenizer.convert_tokens_to_ids(special_tokens(tokenizer)))
    there = {str(row.source): row.place for row in checked.kept}
    sections = [
        _notes(checked),
        findings_section(checked.findings, there),
        charts_section(checked, facts.options),
        _ledger(checked),
        rows_section(checked.kept, viewer),
    ]
    return page(
        visible(f"{_title(facts)} · honed data"),
        header=header(checked, facts),
        sections=sections,
        footer=tag("footer", "Made by ", tag("code", "honed data show --html"), "."),
        styles=("page.css", "data/page.css"),
        script="data/page.js",
    )


def header(checked: Checked, facts: PageFacts) -> Html:
    """Files, the verdict, the command and the headline numbers."""
    verdict, state = _verdict(checked.findings)
    model = [f"for {facts.model}"] if facts.model else []
    return page_header(
        "training data",
        visible(_title(facts)),
        tag("span", verdict, class_=f"status {state}"),
        meta=map(visible, [*model, *_option_words(facts.options)]),
        command=visible(facts.command),
        tiles=join(_tiles(checked, facts.options)),
    )


def findings_section(findings: tuple[Finding, ...], there: Mapping[str, int]) -> Html:
    """All findings, the most severe first, with links to rows that are on the page."""
    if not findings:
        body = tag("p", "✓ Nothing was found.", class_="card good")
    else:
        kinds = dict.fromkeys(finding.kind.name for finding in findings)
        groups = [[finding for finding in findings if finding.kind.name == name] for name in kinds]
        body = join(_kind(group, there, few=len(groups) <= FEW) for group in groups)
    return tag("section", tag("h2", "What was found"), body, class_="findings")


def charts_section(checked: Checked, options: PrepareOptions) -> Html:
    """Histograms of the lengths of documents and of the fill of packed rows."""
    limit = options.max_length if checked.unit == "tokens" else None
    charts = [
        Histogram(
            key="lengths",
            title="Length",
            unit=f"documents by {checked.unit}",
            values=checked.lengths,
            across=checked.unit,
            limit=limit,
            limit_name=f"max_length {limit:,}" if limit else "",
        )
    ]
    if limit and len(checked.fills):
        share = 100.0 * checked.fills / limit
        would = "" if options.packing else ", if packing were on"
        charts.append(
            Histogram(
                key="fills",
                title="Fill of packed rows",
                unit=f"{percent_text(float(np.mean(share)) / 100)} in all{would}",
                values=share,
                across="% of max_length",
                top=100.0,
                things="row",
            )
        )
    return tag("section", tag("h2", "How long it is"), tag("div", join(map(histogram, charts)), class_="charts"))


def _ledger(checked: Checked) -> Html:
    raw = checked.ledger.as_dict()
    hidden = {"padding_share", "fill", "examples"}  # known after training; a percentage below; among the findings
    if not checked.ledger.documents:  # without a model, tokens are unknown
        hidden |= {"tokens", "trained_tokens", "packed_rows", "conversations_split_into_views"}
    known = {f.name for f in fields(SavedLedger)} - hidden
    shown = {key: value for key, value in raw.items() if key in known}
    shown["stop_tokens"] = list(raw.get("stop_tokens", ()))
    if checked.ledger.fill is not None:
        shown["Fill of packed rows"] = percent_text(checked.ledger.fill)
    return ledger_section(parse_ledger(shown), "What will be trained on")


def _title(facts: PageFacts) -> str:
    names = [Path(name).name for name in facts.files]
    return names[0] if len(names) == 1 else f"{names[0]} and {counted(len(names) - 1, 'more file')}"


def _verdict(findings: tuple[Finding, ...]) -> tuple[str, str]:
    counts = {severity: sum(f.kind.severity == severity for f in findings) for severity in SEVERITIES}
    words = ", ".join(counted(n, severity) for severity, n in counts.items() if n)
    state = "bad" if counts["error"] else "" if counts["warning"] else "finished"
    return words or "Nothing found", state


def _option_words(options: PrepareOptions) -> list[str]:
    length = "no max_length" if options.max_length is None else f"max_length {options.max_length:,}"
    return [f"train_on {options.train_on}", length, f"overlong {options.overlong}", *(["packed"] * options.packing)]


def _tiles(checked: Checked, options: PrepareOptions) -> list[Html]:
    ledger, lengths = checked.ledger, checked.lengths
    dropped = ledger.rows_dropped.total()
    tiles = [tile("Rows", [count_text(ledger.rows_in)], f"{counted(dropped, 'row') if dropped else 'none'} dropped")]
    if ledger.tokens:
        share = percent_text(ledger.trained_tokens / ledger.tokens)
        of = f"{share} of {count_text(ledger.tokens)}"
        tiles.append(tile("Trained tokens", [count_text(ledger.trained_tokens)], of))
        tiles.append(tile("Documents", [count_text(ledger.documents)], _packed_words(checked, options)))
    if len(lengths):
        half = f"half have at most {count_text(float(np.quantile(lengths, 0.5, method='higher')))}"
        tiles.append(tile(f"Longest, {checked.unit}", [count_text(float(lengths.max()))], half))
    if checked.scripts:
        total = sum(checked.scripts.values())
        name, most = next(iter(checked.scripts.items()))
        below = f"{percent_text(most / total)} of rows, {counted(len(checked.scripts), 'script')}"
        tiles.append(tile("Script", [name], below))
    return tiles


def _packed_words(checked: Checked, options: PrepareOptions) -> str:
    if not len(checked.fills):
        return "not packed"
    return f"{'' if options.packing else 'would fit '}in {counted(len(checked.fills), 'packed row')}"


def _kind(group: Sequence[Finding], there: Mapping[str, int], *, few: bool) -> Html:
    """All findings of one kind; folded if it is not an error and there are many kinds."""
    kind = group[0].kind
    summary = tag(
        "summary",
        tag("span", kind.severity, class_=f"badge {kind.severity}"),
        " ",
        tag("span", kind.name.replace("_", " "), class_="kind"),
        " ",
        tag("span", _amount(group), class_="amount"),
    )
    subjects = join(_subject(finding, there, alone=len(group) == 1) for finding in group)
    fix = tag("p", tag("b", "Mend it: "), f"{kind.fix}.", class_="fix")
    return tag("details", summary, tag("p", kind.says), subjects, fix, open=few or kind.severity == "error")


def _amount(group: Sequence[Finding]) -> str:
    things = "prompt" if group[0].kind.name == "system_prompts" else "row"
    return counted(sum(finding.count for finding in group), things)


def _subject(finding: Finding, there: Mapping[str, int], *, alone: bool) -> Html:
    words = visible(finding.subject) if alone else f"{count_text(finding.count)}: {visible(finding.subject)}"
    head = tag("p", words, class_="subject") if finding.subject else ""
    return join([head, tag("ul", join(tag("li", _place(spot, there)) for spot in finding.spots))])


def _place(spot: Spot, there: Mapping[str, int]) -> Html:
    name: Html = tag("code", visible(spot.source))
    if spot.source in there:
        name = tag("a", name, href=f"#{row_id(there[spot.source])}")
    return join([name, tag("span", visible(spot.detail), class_="extra", dir="auto") if spot.detail else ""])


def _notes(checked: Checked) -> Html:
    if not checked.notes:
        return join([])
    return tag("aside", tag("ul", join(tag("li", visible(note)) for note in checked.notes)), class_="notices")
