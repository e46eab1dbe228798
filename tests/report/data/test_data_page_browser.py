"""The page about data in headless Chromium: rows do not run, pages turn, nothing sticks out sideways."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser_tools import dom, frame, need_chromium, with_script

from honed.data.lint.lint import check
from honed.data.prepare.options import PrepareOptions
from honed.report.data.page import PageFacts, write_data_page

pytestmark = pytest.mark.browser

HOSTILE = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
UNBROKEN = "W" * 900


def asked(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    need_chromium()
    rows = [asked(f"question {n}", f"answer {n} <|im_end|>" if n == 17 else f"answer {n}") for n in range(25)]
    rows[3] = asked(HOSTILE, HOSTILE)
    rows[4] = asked(UNBROKEN, UNBROKEN)
    rows[5] = {UNBROKEN: UNBROKEN}
    file = tmp_path_factory.mktemp("data") / f"{'long' * 30}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = PrepareOptions()
    checked = check(str(file), options, tokenizer=tiny_tokenizer, keep=range(200))
    facts = PageFacts(files=(str(file),), options=options, model=UNBROKEN, command=UNBROKEN)
    return write_data_page(file.with_name("data.html"), checked, facts, tiny_tokenizer)


def test_rows_are_shown_and_do_not_run_and_the_script_pages_them(page: Path) -> None:
    found = dom(page)
    assert "hacked</title>" not in found and "· honed data</title>" in found
    assert found.count("<script") == 1 and "&lt;script&gt;" in re.sub(r"</?i[^>]*>", "", found)
    assert found.count("<article") == 25
    assert len(re.findall(r"<article[^>]* hidden", found)) == 15
    assert "1 to 10 of 25" in found


def test_pages_turn_and_rows_are_chosen(page: Path) -> None:
    script = """
        const said = [];
        const tell = () => said.push(document.querySelector(".where").textContent);
        const click = (name) => { document.querySelector(name).click(); tell(); };
        click(".next"); click(".next"); click(".next"); click(".previous");
        const select = document.querySelector("select");
        select.value = "control_token"; select.dispatchEvent(new Event("change")); tell();
        said.push([...document.querySelectorAll("article:not([hidden])")].map((one) => one.id).join());
        location.hash = "#row-25";
        addEventListener("hashchange", () => { tell(); document.title = said.join("|"); });
    """
    found = dom(with_script(page, script, "turned.html"))
    said = re.findall(r"<title>(.*?)</title>", found)[0].split("|")
    assert said == ["11 to 20 of 25", "21 to 25 of 25", "21 to 25 of 25", "11 to 20 of 25", "1 to 1 of 1", "row-18",
                    "21 to 25 of 25"]  # fmt: skip


@pytest.mark.parametrize("width", [380, 1200])
def test_nothing_sticks_out_sideways_and_something_is_seen(page: Path, width: int) -> None:
    measure = """
        document.querySelectorAll("details").forEach((fold) => (fold.open = true));
        const root = document.documentElement;
        const bar = document.querySelector(".bar-within").getBoundingClientRect();
        const shade = getComputedStyle(document.querySelector(".tokens .w10")).backgroundColor;
        parent.postMessage(`${innerWidth} ${root.scrollWidth} ${Math.round(bar.height)} ${shade}`, "*");
    """
    copy = with_script(page, measure, f"measured-{width}.html")
    found = dom(frame(copy, width))
    inner, scroll, bar, shade = re.findall(r"<p>(\d+) (\d+) (\d+) ([^<]*)</p>", found)[0]
    assert int(inner) == width and int(scroll) <= width
    assert int(bar) > 20 and shade not in ("", "rgba(0, 0, 0, 0)")
