"""report.html: one self-contained page about a run, made from the files in its folder.

read_run(run_dir) -> SavedRun -> render_run_report -> str -> write_run_report: run_dir/report.html
"""

from __future__ import annotations

from pathlib import Path

from honed.report.json_values import mapping, text_of
from honed.report.ledger_section import ledger_section
from honed.report.markup import Html, tag
from honed.report.page import page, write_page
from honed.report.run.record import SavedRun, read_run
from honed.report.run.sections import (
    appendix,
    charts_section,
    header,
    missing_ledger,
    model_name,
    notices,
    samples_section,
)
from honed.report.run.steps import steps_section

REPORT_NAME = "report.html"


def write_run_report(run_dir: Path) -> Path:
    """Writes `run_dir`/report.html atomically and returns its path.

    Raises:
        RunError: `run_dir` is not a folder, or cannot be written.
    """
    html = render_run_report(read_run(run_dir))
    return write_page(run_dir / REPORT_NAME, html, fix="free the disk or its permissions")


def render_run_report(run: SavedRun) -> str:
    """The whole page as HTML. Pure: the same record gives the same page."""
    ledger = missing_ledger() if run.ledger is None else ledger_section(run.ledger)
    return page(
        f"{model_name(run)} · honed run",
        header=header(run),
        sections=[notices(run), charts_section(run), steps_section(run), samples_section(run), ledger, appendix(run)],
        footer=_footer(run),
        script="run/report.js",
    )


def _footer(run: SavedRun) -> Html:
    version = text_of(mapping(run.facts.get("versions")).get("honed"))
    maker = f"honed {version}" if version else "honed"
    return tag("footer", f"Made by {maker} from the run folder ", tag("code", run.name), ".")
