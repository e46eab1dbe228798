"""The page about an evaluation: complete, escaped, and asking for nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from honed.errors import RunError
from honed.report.evaluation.page import cell_text, interval_text, render_eval_page, write_eval_page

HOSTILE = "<script>document.title='hacked'</script>\"'&\u202e"


def measure(name: str, unit: str, base: float | None, value: float | None) -> dict[str, Any]:
    compares = base is not None and value is not None
    return {
        "name": name,
        "label": f"  {name} {HOSTILE}",
        "unit": unit,
        "of": 1200,
        "value": value,
        "base": base,
        "low": -0.25,
        "high": 0.5,
        "difference": value - base if compares else None,  # type: ignore[operator]
        "perplexity": 2.5,
        "base_perplexity": 3.5 if compares else None,
    }


def result(*, against: bool = True, answers: int = 2) -> dict[str, Any]:
    said = {"text": HOSTILE, "stopped": True, "passed": False}
    base: dict[str, Any] = {"against": {"text": "", "stopped": False}} if against else {}
    row = {
        "source": HOSTILE,
        "messages": [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}],
    }
    verdict = {"name": "loss", "limit": 0.02, "change": 0.05, "relative": True, "passed": False}
    return {
        "model": HOSTILE,
        "against": HOSTILE if against else None,
        "data": HOSTILE,
        "command": HOSTILE,
        "rows": {"rows_in": 3, "rows_trained": 2, "rows_dropped": {HOSTILE: 1}, "rows_cut": {}, "trained_tokens": 9},
        "form": HOSTILE,
        "measures": [measure("loss", "nats", 2.0 if against else None, 1.5), measure("stops", "share", None, None)],
        "gate": [verdict] if against else [],
        "answers": [row | {"reference": HOSTILE, "model": said} | base] * answers,
        "lm_eval": {"model": {HOSTILE: {HOSTILE: 0.5}}, **({"against": {}} if against else {})},
    }


class Tags(HTMLParser):
    """Counts tags and collects addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("against", [True, False])
def test_text_is_escaped_and_nothing_is_fetched(against: bool) -> None:
    page = render_eval_page(result(against=against))
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and tags.addresses == []
    assert tags.counts["script"] == 1  # the page's own, empty
    assert "hacked" in page and "<script>document" not in page
    assert "url(" not in page and "@import" not in page
    assert re.search(r"default-src 'none'; style-src 'sha256-", page)


def test_numbers_stand_there() -> None:
    page = render_eval_page(result())
    for text in ("2.0000", "1.5000", "-0.5000", "-0.2500 to +0.5000", "3.5", "1 gate failed", "+5.00%", "✗ fail"):
        assert text in page
    assert "ran on" in page and "empty answer" in page and "not as asked" in page


def test_one_model_has_no_columns_for_two() -> None:
    page = render_eval_page(result(against=False))
    assert "Difference" not in page and "<h4>Base" not in page and "Gate" not in page


def test_many_answers_are_folded() -> None:
    page = render_eval_page(result(answers=23))
    assert "3 more answers" in page and page.count('class="card answer"') == 23


def test_the_page_is_written_or_refused(tmp_path: Path) -> None:
    found = result() | {"model": "half of a pair \ud800"}
    assert write_eval_page(tmp_path / "e.html", found).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["e.html"]
    with pytest.raises(RunError, match="could not be written"):
        write_eval_page(tmp_path / "none" / "e.html", found)


@pytest.mark.parametrize(
    ("value", "unit", "signed", "text"),
    [
        (0.5, "share", False, "50%"),
        (0.104, "share", True, "+10.4 points"),
        (-0.104, "share", True, "-10.4 points"),
        (2.34567, "nats", False, "2.3457"),
        (0.5, "tokens", True, "+0.5"),
        (None, "nats", False, "-"),
        (float("nan"), "share", False, "-"),
        (float("nan"), "words", True, "-"),
        (float("nan"), "nats", False, "nan"),
    ],
)
def test_numbers_in_their_unit(value: float | None, unit: str, signed: bool, text: str) -> None:
    assert cell_text(value, unit, signed=signed) == text


def test_intervals() -> None:
    assert interval_text(-0.01, 0.02, "share", signed=True) == "-1.0 to +2.0 points"
    assert interval_text(0.1, 0.2, "share") == "10% to 20%"
    assert interval_text(None, None, "share") == "-"
