"""A row with what is trained marked: nothing is lost, nothing commands terminal or page."""

from __future__ import annotations

import html
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import honed
from honed.data.batch.table import PackedRow
from honed.errors import DataError, RecipeError
from honed.report.row.preview import preview_ids
from honed.report.row.text import Style

NASTY = "<script>alert(1)</script>\x1b[2J\u202e & more"
ROWS = [{"messages": [{"role": "user", "content": NASTY}, {"role": "assistant", "content": f"yes {NASTY}"}]}]


class Texts(HTMLParser):
    """All texts of a page, those of marked elements apart."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.marked, self.open = "", list[bool]()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.open.append("background" in (dict(attrs).get("style") or ""))

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.marked += data if any(self.open) else ""


def test_show_prints_what_is_trained(tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    honed.show(ROWS, tiny_tokenizer)
    printed = capsys.readouterr().out
    assert re.findall("«(.*?)»", printed, re.DOTALL)[0].startswith("yes <script>")
    assert "\x1b" not in printed and "\u202e" not in printed
    assert "\\x1b[2J\\u202e" in printed
    honed.show(ROWS, tiny_tokenizer, train_on="all")
    assert "user" in re.findall("«(.*?)»", capsys.readouterr().out, re.DOTALL)[0]


def test_a_row_is_named_as_python_and_as_the_command_line_count(
    tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n{"messages": []}\n', encoding="utf-8")
    honed.show(str(path), tiny_tokenizer, row=1)
    assert capsys.readouterr().out.startswith(f"row 1, counted from 0 ({path}:2), view 1 of 1")
    with pytest.raises(DataError, match=r"row 2, counted from 0 \(.*rows\.jsonl:3\) cannot be trained on"):
        honed.show(str(path), tiny_tokenizer, row=2)


def test_show_refuses_what_is_not_there(tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no row 1 among 1"):
        honed.show(ROWS, tiny_tokenizer, row=1)
    with pytest.raises(RecipeError, match="no option 'train_only'"):
        honed.show(ROWS, tiny_tokenizer, train_only="last")
    with pytest.raises(DataError, match="cannot be trained on"):
        honed.show([{"messages": []}], tiny_tokenizer)


def test_html_marks_the_same_and_runs_nothing(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer(f"why {NASTY} because {NASTY}", add_special_tokens=False)["input_ids"]
    weights = np.where(np.arange(len(ids)) > len(ids) // 2, 1.0, 0.0).astype(np.float32)
    row = PackedRow(input_ids=np.array(ids, dtype=np.int32), weights=weights, lengths=(len(ids),))
    shown = preview_ids(row, tiny_tokenizer, name="<b>row</b>")
    page = shown._repr_html_()
    texts = Texts()
    texts.feed(page)
    assert set(texts.tags) == {"div", "p", "span"}  # nothing of the row became an element
    trained = [token.text for _, tokens in shown.parts for token in tokens if token.weight]
    assert texts.marked.removesuffix("marked") == "".join(trained)
    assert "<b>row</b>" in html.unescape(page) and "<b>" not in page
    assert f"{len(ids)} tokens, {int(weights.sum())} of them trained" in page
    coloured = shown.text(Style(paint="colour", whole=True))
    assert "\x1b[30;42m" in coloured and "\x1b[2J" not in coloured


def test_a_notebook_gets_the_object(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    ipython: Any = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    inner: Any = ModuleType("IPython.display")
    inner.display = given.append
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", inner)
    honed.show(ROWS, tiny_tokenizer)
    assert "yes" in given[0]._repr_html_()
