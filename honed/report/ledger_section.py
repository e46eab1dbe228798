"""The ledger of a run as a table that adds up, or says that it does not."""

from __future__ import annotations

from collections.abc import Iterable

from honed.quantities import count_text, counted, percent_text
from honed.report.json_values import finite, text_of
from honed.report.ledger import Example, SavedLedger
from honed.report.markup import Html, join, tag

# One part of a bar: name, amount, CSS class for the colour.
Part = tuple[str, float, str]


def ledger_section(ledger: SavedLedger, heading: str = "What was trained on") -> Html:
    """What became of each row and each token."""
    return tag(
        "section",
        tag("h2", heading),
        tag("div", _rows_card(ledger), _tokens_card(ledger), class_="pair"),
        _notes(ledger),
        _examples(ledger),
        class_="ledger",
    )


def ledger_problem(ledger: SavedLedger) -> str:
    """A sentence on why rows in do not equal rows trained plus rows dropped; "" if they do."""
    if ledger.rows_in is None or ledger.rows_trained is None or ledger.rows_dropped is None:
        names = ("rows_in", "rows_trained", "rows_dropped")
        absent = [name for name in names if getattr(ledger, name) is None]
        return f"The sum cannot be checked: ledger.json does not say {' or '.join(absent)}."
    dropped = sum(ledger.rows_dropped.values())
    found = ledger.rows_trained + dropped
    if found == ledger.rows_in:
        return ""
    gap = ledger.rows_in - found
    fate = f"{counted(gap, 'row')} unaccounted for" if gap > 0 else f"{counted(-gap, 'row')} too many"
    return (
        f"The ledger does not add up: {counted(ledger.rows_in, 'row')} in, but "
        f"{count_text(ledger.rows_trained)} trained + {count_text(dropped)} dropped = "
        f"{count_text(found)} ({fate})."
    )


def proportion_bar(parts: Iterable[Part], label: str) -> Html:
    """A bar divided in proportion to amounts (0 or more), with its legend. Empty if the amounts sum to 0."""
    shown = [(name, amount, colour) for name, amount, colour in parts if amount > 0]
    total = sum(amount for _, amount, _ in shown)
    if not shown:
        return join([])
    bar = tag("svg", tag("title", label), *_cuts(shown, total), class_="bar", role="img", width="100%", height="12")
    legend = (
        tag("li", tag("i", class_=f"swatch {colour}"), f"{name} ", tag("b", percent_text(amount / total)))
        for name, amount, colour in shown
    )
    return join([bar, tag("ul", join(legend), class_="legend")])


def key_value_table(pairs: Iterable[tuple[str, str]]) -> Html:
    """A table with two columns, names and values."""
    rows = (tag("tr", tag("th", key, scope="row"), tag("td", value)) for key, value in pairs)
    return tag("table", tag("tbody", join(rows)), class_="facts")


def plain_text(value: object) -> str:
    """A JSON value for a table: numbers with separators, the rest as written."""
    number = None if isinstance(value, str) else finite(value)
    if number is not None:
        return count_text(number)
    return text_of(value) or ("null" if value is None else "")


def _cuts(parts: list[Part], total: float) -> list[Html]:
    cuts, start = [], 0.0
    for _, amount, colour in parts:
        share = 100 * amount / total
        cuts.append(tag("rect", x=f"{start:.3f}%", width=f"{share:.3f}%", height="12", class_=colour))
        start += share
    return cuts


def _rows_card(ledger: SavedLedger) -> Html:
    dropped = ledger.rows_dropped or {}
    parts = [
        ("trained", ledger.rows_trained or 0.0, "fill-1"),
        ("dropped", sum(dropped.values()), "fill-bad"),
    ]
    lines = [_row("Rows in", ledger.rows_in)]
    lines += [_row(f"dropped: {reason}", number, sign="− ") for reason, number in dropped.items()]
    lines += [_row("dropped", 0.0, sign="− ")] if not dropped and ledger.rows_dropped is not None else []
    lines += [_row("Rows trained", ledger.rows_trained, sign="= ", class_="total")]
    return tag(
        "div",
        tag("h3", "Rows"),
        proportion_bar(parts, "Share of rows trained and dropped"),
        tag("table", tag("tbody", join(lines)), class_="sum"),
        _verdict(ledger),
        key_value_table(_row_facts(ledger)),
        class_="card",
    )


def _row(name: str, number: float | None, *, sign: str = "", class_: str | None = None) -> Html:
    cell = "not recorded" if number is None else f"{sign if sign == '− ' else ''}{count_text(number)}"
    head = f"{sign if sign == '= ' else ''}{name}"
    return tag("tr", tag("th", head, scope="row"), tag("td", cell), class_=class_)


def _verdict(ledger: SavedLedger) -> Html:
    problem = ledger_problem(ledger)
    if problem:
        return tag("p", problem, class_="warning", role="alert")
    return tag("p", "✓ Adds up: every row is accounted for.", class_="good")


def _row_facts(ledger: SavedLedger) -> list[tuple[str, str]]:
    cut = [(f"Cut: {reason}", counted(number, "row")) for reason, number in ledger.rows_cut.items()]
    numbers = [
        ("Conversations split into views", ledger.conversations_split_into_views),
        ("Rows after packing", ledger.packed_rows),
    ]
    return cut + [(name, count_text(number)) for name, number in numbers if number is not None]


def _tokens_card(ledger: SavedLedger) -> Html:
    return tag(
        "div",
        tag("h3", "Tokens"),
        proportion_bar(_token_parts(ledger), "Share of tokens trained and read as context"),
        key_value_table(_token_facts(ledger)),
        _stop_tokens(ledger),
        class_="card",
    )


def _token_parts(ledger: SavedLedger) -> list[Part]:
    if ledger.tokens is None or ledger.trained_tokens is None or ledger.trained_tokens > ledger.tokens:
        return []
    context = ledger.tokens - ledger.trained_tokens
    return [("trained", ledger.trained_tokens, "fill-1"), ("context only", context, "fill-muted")]


def _token_facts(ledger: SavedLedger) -> list[tuple[str, str]]:
    facts = [
        ("Tokens", ledger.tokens and count_text(ledger.tokens)),
        ("Trained tokens", None if ledger.trained_tokens is None else count_text(ledger.trained_tokens)),
        ("Padding", None if ledger.padding_share is None else percent_text(ledger.padding_share)),
    ]
    known = [(name, text) for name, text in facts if text]
    return known + [(key, plain_text(value)) for key, value in ledger.others.items()]


def _stop_tokens(ledger: SavedLedger) -> Html:
    if not ledger.stop_tokens:
        return join([])
    tokens = join((tag("code", token) for token in ledger.stop_tokens), " ")
    return tag("p", "Answers end with ", tokens, class_="stop-tokens")


def _notes(ledger: SavedLedger) -> Html:
    if not ledger.notes:
        return join([])
    notes = tag("ul", join(tag("li", note) for note in ledger.notes))
    return tag("div", tag("h3", "Notes"), notes, class_="card notes")


def _examples(ledger: SavedLedger) -> Html:
    if not ledger.examples:
        return join([])
    head = tag("tr", tag("th", "Source", scope="col"), tag("th", "Reason", scope="col"))
    rows = (tag("tr", tag("td", tag("code", one.source)), tag("td", _reason(one))) for one in ledger.examples)
    table = tag("table", tag("thead", head), tag("tbody", join(rows)), class_="listing")
    summary = tag("summary", f"Rows dropped or cut: {counted(len(ledger.examples), 'example')}")
    return tag("details", summary, tag("div", table, class_="scroll"), open=len(ledger.examples) <= 8)


def _reason(example: Example) -> Html:
    others = (tag("span", f"{key}: {plain_text(value)}", class_="extra") for key, value in example.others.items())
    return join([example.reason, *others])
