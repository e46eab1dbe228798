"""The page about data: escaping, counts, shades and histograms, without a browser."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from honed.data.lint.lint import check
from honed.data.prepare.options import PrepareOptions
from honed.report.axis import value_axis
from honed.report.data.charts import Histogram, bars_of, histogram
from honed.report.data.page import PageFacts, render_data_page
from honed.report.data.rows import shade

HOSTILE = "<script>document.title='hacked'</script>"


def asked(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def page_of(rows: list[Any], tokenizer: Any = None, **options: Any) -> str:
    settings = PrepareOptions(**{"max_length": 64, **options})
    checked = check(rows, settings, tokenizer=tokenizer, keep=range(100))
    facts = PageFacts(files=(f"{HOSTILE}.jsonl",), options=settings, model=HOSTILE, command=HOSTILE)
    return render_data_page(checked, facts, tokenizer)


@pytest.mark.parametrize("with_model", [True, False])
def test_hostile_text_is_escaped(with_model: bool, tiny_tokenizer: Any) -> None:
    rows = [asked(HOSTILE, f'"{HOSTILE}\x1b\u202e'), {HOSTILE: HOSTILE}, asked(f"{HOSTILE} \ufffd", "x")]
    page = page_of(rows, tiny_tokenizer if with_model else None)
    assert page.count("<script") == 1 and page.count("</script") == 1
    assert "\x1b" not in page and "\u202e" not in page
    assert re.search(r"https?://", page) is None


def test_the_policy_allows_two_hashes_only(tiny_tokenizer: Any) -> None:
    page = page_of([asked("a", "b")], tiny_tokenizer)
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0]
    assert policy.count("sha256-") == 2 and policy.startswith("default-src") and "unsafe" not in policy
    assert " style=" not in page and not re.search(r"\son\w+=", page)


def test_what_the_check_found_stands_there(tiny_tokenizer: Any) -> None:
    page = page_of([asked("a", "b"), asked("a", "b"), asked("c", "")], tiny_tokenizer)
    assert "1 error, 1 warning" in page and "empty answer" in page
    assert 'href="#row-2"' in page and 'data-faults="unusable"' in page
    assert "What will be trained on" in page and "What was trained on" not in page
    assert "Adds up" in page


def test_tokens_are_shaded_by_weight(tiny_tokenizer: Any) -> None:
    page = page_of([{"input_ids": [70, 71, 72, 2], "loss_mask": [0, 0.5, 1, 2]}], tiny_tokenizer)
    assert '<span class="w5"><b class="weight">0.5</b>' in page
    assert '<span class="w10">' in page and '<b class="weight">2</b>' in page
    assert '<i title="2" class="s">&lt;|im_end|&gt;</i>' in page
    assert [shade(w) for w in (0.0, 0.01, 0.5, 1.0, 7.0)] == ["w0", "w1", "w5", "w10", "w10"]


def test_clean_data_says_so(tiny_tokenizer: Any) -> None:
    page = page_of([asked("a", "b")], tiny_tokenizer, packing=True)
    assert "✓ Nothing was found." in page and "Nothing found" in page and "if packing were on" not in page


def test_long_rows_are_shortened(tiny_tokenizer: Any) -> None:
    page = page_of([asked("a", "word " * 4000)], tiny_tokenizer, max_length=100_000)
    assert "tokens not shown" in page and page.count("<i ") < 2100


@pytest.mark.parametrize("values", [[0], [5] * 9, [1, 2, 3], list(range(1000)), [1] * 500 + [10**6], []])
def test_every_value_is_in_a_bar(values: list[int]) -> None:
    array = np.array(values, dtype=np.int64)
    chart = Histogram(key="k", title="T", unit="u", values=array, across="tokens", limit=64, limit_name="max")
    drawn = histogram(chart)
    counts = [int(n.replace(",", "")) for n in re.findall(r": ([\d,]+) documents?</title>", drawn)]
    assert sum(counts) == len(values)
    assert values or "nothing to count" in drawn


def test_bars_are_whole_where_numbers_are_small() -> None:
    bars = bars_of(np.array([1, 1, 2, 9]), value_axis([0.0, 9.0]))
    assert all(bar.high - bar.low == 1 for bar in bars) and sum(bar.count for bar in bars) == 4
