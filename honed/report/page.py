"""The frame and common parts of all pages: each is one file with its style sheet and script, and loads nothing.

The Content-Security-Policy allows only the style sheet and the script of this package, by their hashes, so that text
from a dataset could not run even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from honed.errors import RunError
from honed.quantities import counted
from honed.report.markup import Html, escaped, join, tag, trusted


def page(
    title: str,
    *,
    header: Html,
    sections: Iterable[Html],
    footer: Html,
    styles: tuple[str, ...] = ("page.css",),
    script: str | None = None,
) -> str:
    """The whole page as HTML; `styles` and `script` are files below this folder."""
    style = trusted("".join(_asset(name) for name in styles))
    source = _asset(script) if script is not None else trusted("")
    return Template(_asset("page.html")).substitute(
        policy=content_policy(style, source),
        title=escaped(title),
        style=style,
        script=source,
        header=header,
        sections=join(sections, "\n"),
        footer=footer,
    )


def write_page(target: Path, html: str, *, fix: str) -> Path:
    """Writes a page atomically and returns its path.

    Raises:
        RunError: it cannot be written; `fix` is the error's advice.
    """
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        # "replace": JSON can contain a lone surrogate, which UTF-8 cannot encode.
        unfinished.write_bytes(html.encode("utf-8", "replace"))
        os.replace(unfinished, target)  # noqa: PTH105  (what makes the change atomic is worth seeing)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RunError(f"{target} could not be written: {error}.", fix=fix) from error
    return target


def page_header(kind: str, title: str, status: str, *, meta: Iterable[str], command: str, tiles: Html) -> Html:
    """The title with its status, a few words, the command, and the headline numbers."""
    return tag(
        "header",
        tag("p", tag("b", "honed"), f" {kind}", class_="brand"),
        tag("div", tag("h1", title, dir="auto"), status, class_="title"),
        tag("p", join((tag("span", word) for word in meta), " "), class_="meta"),
        tag("p", tag("code", command), class_="command") if command else "",
        tag("dl", tiles, class_="tiles"),
    )


def tile(name: str, numbers: Sequence[str], below: str) -> Html:
    """A headline number, or "4.81 → 0.32" with the last emphasised, and a line below."""
    *earlier, last = numbers
    start = join(tag("span", number, " →", class_="from") for number in earlier)
    number = tag("dd", start, " " if earlier else "", tag("span", last), class_="number")
    return tag("div", tag("dt", name), number, tag("dd", below) if below else "")


def numbers_table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table that scrolls sideways if it is wide; the first cell of each row is its header."""
    top = tag("thead", tag("tr", join(tag("th", word, scope="col") for word in head)))
    body = (tag("tr", tag("th", first, scope="row"), join(tag("td", cell) for cell in rest)) for first, *rest in rows)
    return tag("div", tag("table", top, tag("tbody", join(body)), class_="listing numbers"), class_="scroll")


def answers_section(title: str, form: str, cards: Sequence[Html], *, shown: int) -> Html:
    """Answers below the required form; the first `shown` are visible, the rest folded."""
    rest = cards[shown:]
    more = tag("details", tag("summary", counted(len(rest), "more answer")), join(rest)) if rest else ""
    rule = tag("p", "The form asked for: ", tag("em", form), class_="rule") if form else ""
    return tag("section", tag("h2", title), rule, join(cards[:shown]), more, class_="answers")


def answer_half(title: str, text: str, badges: Iterable[Html], kind: str) -> Html:
    """One of two answers side by side."""
    body = tag("div", text, class_="text", dir="auto")
    return tag("div", tag("h4", title, " ", join(badges, " ")), body, class_=f"half {kind}")


def badge(state: bool, good: str, bad: str) -> Html:
    """A badge that says whether something is as it should be."""
    mark = tag("span", "✓ " if state else "✗ ", aria_hidden="true")
    return tag("span", mark, good if state else bad, class_=f"badge {'good' if state else 'bad'}")


def content_policy(style: str, script: str) -> str:
    """A Content-Security-Policy that allows one style sheet and one script, by hash, and nothing else."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _asset(name: str) -> Html:
    return trusted(files("honed.report").joinpath(name).read_text(encoding="utf-8"))
