"""What all pages are: one file that asks for nothing, with its own style sheet and script and no other.

The Content-Security-Policy allows exactly the style sheet and the script of this package, by their hashes, so that
text of a data set could not run even if it got through unescaped.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from string import Template

from honed.errors import RunError
from honed.report.markup import Html, escaped, join, trusted


def page(
    title: str,
    *,
    header: Html,
    sections: Iterable[Html],
    footer: Html,
    styles: tuple[str, ...] = ("page.css",),
    script: str | None = None,
) -> str:
    """The whole page as HTML.

    Args:
        title: what the window is called.
        header, sections, footer: what it shows, from the top.
        styles: files below this folder, one after the other.
        script: a file below this folder.
    """
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
    """Writes a page and returns its path; a reader sees the old page or the new, never half.

    Raises:
        RunError: it cannot be written there; `fix` says what to do then.
    """
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        # "replace": JSON can hold half of a surrogate pair, which UTF-8 cannot.
        unfinished.write_bytes(html.encode("utf-8", "replace"))
        os.replace(unfinished, target)  # noqa: PTH105  (what makes the change atomic is worth seeing)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RunError(f"{target} could not be written: {error}.", fix=fix) from error
    return target


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
