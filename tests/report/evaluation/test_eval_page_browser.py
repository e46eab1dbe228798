"""The page about an evaluation in headless Chromium: answers side by side, nothing runs or sticks out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from browser_tools import dom, frame, need_chromium, with_script

from honed.report.evaluation.page import write_eval_page

pytestmark = pytest.mark.browser

HOSTILE = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
UNBROKEN = "W" * 600


@pytest.fixture
def page(tmp_path: Path) -> Path:
    need_chromium()
    measure = {"name": "loss", "label": "loss", "unit": "nats", "of": 9, "value": 1.5, "base": 2.0, "low": -0.75,
               "high": -0.25, "difference": -0.5, "perplexity": 4.5, "base_perplexity": 7.4}  # fmt: skip
    result: dict[str, Any] = {
        "model": UNBROKEN, "against": UNBROKEN, "data": UNBROKEN, "command": UNBROKEN, "form": UNBROKEN,
        "rows": {"rows_in": 3, "rows_trained": 3, "rows_dropped": {}, "rows_cut": {}, "trained_tokens": 9},
        "measures": [measure], "gate": [], "lm_eval": {"model": {}, "against": {}},
        "answers": [
            {
                "source": UNBROKEN, "messages": [{"role": "user", "content": f"question {n} {HOSTILE}"}],
                "reference": UNBROKEN, "model": {"text": f"tuned {n} {HOSTILE}", "stopped": True, "passed": True},
                "against": {"text": f"base {n} {UNBROKEN}", "stopped": False, "passed": False},
            }
            for n in range(3)
        ],
    }  # fmt: skip
    return write_eval_page(tmp_path / "eval.html", result)


def test_text_is_shown_and_does_not_run(page: Path) -> None:
    found = dom(page)
    assert "hacked</title>" not in found and "· honed eval</title>" in found
    assert found.count("&lt;script&gt;document.title='hacked'") == 6 and "<img" not in found


@pytest.mark.parametrize(("width", "beside"), [(380, False), (1200, True)])
def test_answers_stand_side_by_side_and_nothing_sticks_out(width: int, beside: bool, page: Path) -> None:
    measure = """
        document.querySelectorAll("details").forEach((fold) => (fold.open = true));
        const holds = (word) => (one) => one.textContent.startsWith(word) && one.children.length === 0;
        const all = [...document.querySelectorAll(".answer *")];
        const [base, tuned] = ["base 1 ", "tuned 1 "].map((word) => all.find(holds(word)).getBoundingClientRect());
        const apart = base.right <= tuned.left && Math.abs(base.top - tuned.top) < 40;
        const below = base.bottom <= tuned.top;
        parent.postMessage(`${innerWidth} ${document.documentElement.scrollWidth} ${apart} ${below}`, "*");
    """
    found = dom(frame(with_script(page, measure), width))
    [(inner, scroll, apart, below)] = re.findall(r"<p>(\d+) (\d+) (true|false) (true|false)</p>", found)
    assert int(inner) == width and int(scroll) <= width
    assert (apart, below) == (("true", "false") if beside else ("false", "true"))
