"""Rows on a page as the model will see them: every view and every token, shaded by its loss weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from honed.data.example import Conversation, Document, Example, PromptCompletion
from honed.data.lint.lint import SeenRow
from honed.data.lint.view import ShownToken, TokenViewer, visible
from honed.quantities import count_text, counted
from honed.report.markup import Html, join, tag

MOST_TOKENS = 2000  # per view; longer ones show their start and end
MOST_CHARACTERS = 20_000  # per message, without a model


def rows_section(rows: Sequence[SeenRow], viewer: TokenViewer | None) -> Html:
    """All rows; the page's script shows ten at a time, and without it all are listed."""
    if not rows:
        return tag("section", tag("h2", "Rows"), tag("p", "No rows were chosen.", class_="card quiet"))
    cards = join(_card(row, viewer) for row in rows)
    views = [view for row in rows for view in row.views]
    weights = sorted({float(weight) for view in views for weight in set(view.weights.tolist())} - {0.0})
    return tag(
        "section",
        tag("h2", "Rows"),
        _legend(weights) if viewer is not None else "",
        tag("div", class_="controls"),
        tag("div", cards, class_="rows"),
        tag("div", class_="controls"),
        class_="browse",
    )


def row_id(place: int) -> str:
    """The anchor of a row's card, from its position in the data."""
    return f"row-{place + 1}"


def _legend(weights: Iterable[float]) -> Html:
    shades = [tag("li", tag("span", "context", class_="w0"), " read, not trained")]
    shades += [tag("li", tag("span", "trained", class_=shade(weight)), f" weight {weight:g}") for weight in weights]
    box = Html('<input type="checkbox" id="bounds">')
    toggle = tag("li", tag("label", box, " where tokens begin (their ids under the pointer)"), class_="toggle")
    return tag("ul", join([*shades, toggle]), class_="legend shades")


def shade(weight: float) -> str:
    """The CSS class for a weight: w0 (0) to w10 (1 and more)."""
    return f"w{0 if weight == 0 else max(1, min(10, round(10 * weight)))}"


def _card(row: SeenRow, viewer: TokenViewer | None) -> Html:
    badges = [tag("span", fault.replace("_", " "), class_="badge bad") for fault in row.faults]
    if row.dropped:
        badges.append(tag("span", "not trained", class_="badge off"))
    head = tag("h3", visible(str(row.source)), " ", join(badges, " "))
    fate = tag("p", visible(row.dropped), class_="warning") if row.dropped else ""
    return tag(
        "article",
        head,
        fate,
        join(_body(row, viewer)),
        class_="card row",
        id=row_id(row.place),
        data_faults=" ".join(row.faults),
    )


def _body(row: SeenRow, viewer: TokenViewer | None) -> list[Html]:
    if viewer is not None and row.views:
        return [part for n, view in enumerate(row.views, 1) for part in _view(n, len(row.views), view, viewer)]
    return [] if row.example is None else _messages(row.example)


def _view(number: int, of: int, view: Any, viewer: TokenViewer) -> list[Html]:
    name = f"View {number} of {of}: " if of > 1 else ""
    words = f"{name}{counted(len(view), 'token')}, {count_text(view.trained)} trained"
    tokens = viewer.tokens(view)
    gap = len(tokens) - MOST_TOKENS
    parts = [_stretches(tokens)]
    if gap > 0:
        middle = tag("span", f" … {counted(gap, 'token')} not shown … ", class_="gap")
        parts = [_stretches(tokens[: MOST_TOKENS // 2]), middle, _stretches(tokens[-(MOST_TOKENS // 2) :])]
    return [tag("p", words, class_="count"), tag("div", join(parts), class_="tokens", dir="auto")]


def _stretches(tokens: Sequence[ShownToken]) -> Html:
    """Adjacent tokens of equal weight in one element."""
    groups = groupby(tokens, key=lambda token: token.weight)
    return join(
        tag("span", _label(weight), join(_token(token) for token in group), class_=shade(weight))
        for weight, group in groups
    )


def _label(weight: float) -> Html:
    return join([]) if weight in (0.0, 1.0) else tag("b", f"{weight:g}", class_="weight")


def _token(token: ShownToken) -> Html:
    text = token.text.replace("\n", "↵\n") if token.weight else token.text
    return tag("i", text, title=" ".join(map(str, token.ids)), class_="s" if token.special else None)


def _messages(example: Example) -> list[Html]:
    """The texts of a row by role, for a page without a model."""
    if isinstance(example, Conversation):
        texts = [(message.role, message.content) for message in example.messages]
    elif isinstance(example, PromptCompletion):
        texts = [("prompt", example.prompt), ("completion", example.completion)]
    elif isinstance(example, Document):
        texts = [("text", example.text)]
    else:
        texts = [("token ids", " ".join(map(str, example.input_ids)))]
    return [
        join([tag("p", role, class_="count"), tag("div", _short(visible(text)), class_="tokens", dir="auto")])
        for role, text in texts
    ]


def _short(text: str) -> str:
    more = len(text) - MOST_CHARACTERS
    return text if more <= 0 else f"{text[:MOST_CHARACTERS]} … {counted(more, 'character')} not shown"
