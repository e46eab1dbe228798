"""The page about data in headless Chromium: rows do not run, pages turn, nothing sticks out sideways."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from honed.data.lint import check
from honed.data.prepare import PrepareOptions
from honed.report.data_page import PageFacts, write_data_page

pytestmark = pytest.mark.browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=2000",
)  # fmt: skip
HOSTILE = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
UNBROKEN = "W" * 900


def asked(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    if CHROMIUM is None:
        pytest.skip("no chromium, google-chrome or chromium-browser on PATH")
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


def chromium(page: Path, *arguments: str) -> str:
    with tempfile.TemporaryDirectory(prefix="honed-chromium-", ignore_cleanup_errors=True) as profile:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *arguments, page.as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode("utf-8", "replace")


def with_script(page: Path, script: str, name: str) -> Path:
    """A copy of the page, without its policy, that runs one more script."""
    source = page.read_text(encoding="utf-8")
    without_policy, found = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    assert found == 1
    copy = page.with_name(name)
    copy.write_text(without_policy.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return copy


def frame(page: Path, width: int) -> Path:
    """A page that shows the other as wide as a phone, and what that one says of itself."""
    wrapper = page.with_name(f"frame-{width}.html")
    source = f"""<!doctype html><body style="margin:0;background:#000"><p></p>
        <script>onmessage = (event) => document.querySelector("p").textContent = event.data</script>
        <iframe src="{page.name}" style="border:0;width:{width}px;height:1400px"></iframe>"""
    wrapper.write_text(source, encoding="utf-8")
    return wrapper


def test_rows_are_shown_and_do_not_run_and_the_script_pages_them(page: Path) -> None:
    found = chromium(page, "--dump-dom")
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
    found = chromium(with_script(page, script, "turned.html"), "--dump-dom")
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
    found = chromium(frame(copy, width), "--dump-dom")
    inner, scroll, bar, shade = re.findall(r"<p>(\d+) (\d+) (\d+) ([^<]*)</p>", found)[0]
    assert int(inner) == width and int(scroll) <= width
    assert int(bar) > 20 and shade not in ("", "rgba(0, 0, 0, 0)")
