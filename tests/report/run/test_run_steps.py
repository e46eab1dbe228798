"""The worst steps of a run with their rows, on its page."""

from __future__ import annotations

import json
from pathlib import Path

from honed.report.run.record import read_run
from honed.report.run.report import render_run_report
from honed.report.run.steps import steps_section

HOSTILE = "<script>document.title='hacked'</script>"


def page_of(folder: Path, worst: object, not_taken: str = "") -> str:
    (folder / "worst_steps.json").write_text(json.dumps(worst), encoding="utf-8")
    (folder / "not_finite.jsonl").write_text(not_taken, encoding="utf-8")
    return render_run_report(read_run(folder))


def test_rows_are_shown_as_text(tmp_path: Path) -> None:
    rows = [{"row": 7, "documents": [3], "text": HOSTILE}, {"row": 8, "documents": [4], "text": "why & how"}]
    missed = {"step": 2, "losses": ["nan"], "rows": [{"row": 5, "at_fault": True, "text": "the culprit"}]}
    worst = {"steps": [{"step": 2, "loss": "nan", "rows": None}, {"step": 9, "loss": 8.3125, "rows": rows}]}
    page = page_of(tmp_path, worst, json.dumps(missed) + "\n")
    assert HOSTILE not in page and "&lt;script&gt;document.title" in page and "why &amp; how" in page
    assert page.count("Step 2: ") == 1, "told once, among those that were not taken"
    assert page.index("Steps that were not taken") < page.index("the culprit") < page.index("Step 9: loss 8.31, 2 rows")
    assert "row 5<b> at fault</b>" in page and "row 7<div" in page


def test_without_any_there_is_no_section(tmp_path: Path) -> None:
    assert steps_section(read_run(tmp_path)) == ""
    assert "The worst steps" not in page_of(tmp_path, {"steps": []})


def test_files_that_lie_are_told(tmp_path: Path) -> None:
    page = page_of(tmp_path, [1], "no JSON\n")
    assert "worst_steps.json does not hold a JSON object" in page and "not_finite.jsonl: 1 line could not be" in page
    page = page_of(tmp_path, {"steps": [3, {"step": [1], "loss": {}, "rows": [4, {"row": HOSTILE}]}]})
    assert HOSTILE not in page and "The worst steps" in page
