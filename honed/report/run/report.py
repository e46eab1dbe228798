"""report.html: one self-contained page about a run, made from what the run wrote into its folder.

    read_run(run_dir) -> RunRecord -> render_run_report -> str -> write_run_report: run_dir/report.html

The page asks for nothing: no network, no fonts, no scripts but its own. Its Content-Security-Policy allows
exactly the style sheet and the script of this package, by their hashes, so that text of a data set could not
run even if it got through unescaped.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from importlib.resources import files
from pathlib import Path
from string import Template

from honed.errors import RunError
from honed.report.ledger_section import ledger_section
from honed.report.markup import Html, escaped, join, tag, trusted
from honed.report.run.record import RunRecord, mapping, read_run, text_of
from honed.report.run.sections import (
    answers_section,
    appendix,
    charts_section,
    header,
    missing_ledger,
    model_name,
    notices,
)
from honed.report.run.steps import steps_section

REPORT_NAME = "report.html"


def write_run_report(run_dir: Path) -> Path:
    """Writes `run_dir`/report.html and returns its path; a reader sees the old page or the new, never half.

    Raises:
        RunError: `run_dir` is not a folder, or cannot be written.
    """
    page = render_run_report(read_run(run_dir))
    target = run_dir / REPORT_NAME
    unfinished = run_dir / f".{REPORT_NAME}.{secrets.token_hex(4)}.tmp"
    try:
        # "replace": JSON can hold half of a surrogate pair, which UTF-8 cannot.
        unfinished.write_bytes(page.encode("utf-8", "replace"))
        os.replace(unfinished, target)  # noqa: PTH105  (what makes the change atomic is worth seeing)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RunError(f"{target} could not be written: {error}.", fix="free the disk or its permissions") from error
    return target


def render_run_report(run: RunRecord) -> str:
    """The whole page as HTML. Pure: the same record gives the same page."""
    style, script = _asset("page.css"), _asset("run/report.js")
    ledger = missing_ledger() if run.ledger is None else ledger_section(run.ledger)
    sections = [notices(run), charts_section(run), steps_section(run), answers_section(run), ledger, appendix(run)]
    return Template(_asset("page.html")).substitute(
        policy=content_policy(style, script),
        title=escaped(f"{model_name(run)} · honed run"),
        style=style,
        script=script,
        header=header(run),
        sections=join(sections, "\n"),
        footer=_footer(run),
    )


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


def _footer(run: RunRecord) -> Html:
    version = text_of(mapping(run.facts.get("versions")).get("honed"))
    maker = f"honed {version}" if version else "honed"
    return tag("footer", f"Made by {maker} from the run folder ", tag("code", run.name), ".")
