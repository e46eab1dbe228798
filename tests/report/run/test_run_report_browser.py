"""The page in headless Chromium: hostile text does not run, charts are seen, nothing sticks out sideways."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browser_tools import chromium, dom, frame, need_chromium, with_script
from PIL import Image

from honed.report.run.report import write_run_report

pytestmark = pytest.mark.browser

TRAIN_LINE_LIGHT, TRAIN_LINE_DARK = (0x1F, 0x6F, 0xC4), (0x6C, 0xAE, 0xF5)
PAGE_LIGHT, PAGE_DARK = (0xF6, 0xF6, 0xF3), (0x11, 0x14, 0x17)

Pixel = tuple[int, int, int]


@pytest.fixture
def page(run_folder: Path) -> Path:
    need_chromium()
    return write_run_report(run_folder)


def colours(page: Path, width: int, height: int, *arguments: str) -> dict[Pixel, int]:
    """How many pixels of each colour a screenshot has."""
    shot = page.with_suffix(".png")
    chromium(page, f"--screenshot={shot}", f"--window-size={width},{height}", *arguments)
    with Image.open(shot) as image:
        found = image.convert("RGB").getcolors(maxcolors=width * height)
    return {pixel: count for count, pixel in found or () if isinstance(pixel, tuple)}


def test_hostile_text_is_shown_and_does_not_run(page: Path) -> None:
    found = dom(page)
    assert "<title>HuggingFaceTB/SmolLM2-135M · honed run</title>" in found
    assert "&lt;script&gt;document.title='hacked'&lt;/script&gt;" in found
    assert found.count("<script") == 1


def test_the_policy_lets_the_pages_own_script_and_style_through(page: Path) -> None:
    assert dom(page).count('class="read-out"') == 7  # one for each chart, made by the script
    assert colours(page, 1200, 300)[PAGE_LIGHT] > 50_000  # painted by the style sheet


def test_the_policy_stops_a_script_that_got_in(page: Path) -> None:
    source = page.read_text(encoding="utf-8")
    page.write_text(source.replace("</body>", "<script>document.title='hacked'</script></body>"), encoding="utf-8")
    assert "<title>hacked</title>" not in dom(page)


def test_charts_are_seen_without_scripts_in_light_and_dark(page: Path) -> None:
    source = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"(?s)<script>.*?</script>", "", source), encoding="utf-8")
    light = colours(page, 1200, 900)
    assert light[TRAIN_LINE_LIGHT] > 300 and light[PAGE_LIGHT] > 100_000 and len(light) > 100
    dark = colours(page, 1200, 900, "--force-dark-mode")
    assert dark[TRAIN_LINE_DARK] > 300 and dark[PAGE_DARK] > 100_000 and PAGE_LIGHT not in dark


def test_the_phone_page_is_not_blank(page: Path) -> None:
    seen = colours(frame(page, 380), 500, 1200)
    assert seen[TRAIN_LINE_LIGHT] > 100 and len(seen) > 100


@pytest.mark.parametrize("width", [380, 1200])
def test_nothing_sticks_out_sideways(page: Path, width: int) -> None:
    unbroken = "W" * 600
    answer = {"prompt": unbroken, "before": unbroken, "after": unbroken, "after_stopped": True}
    (page.parent / "samples.json").write_text(json.dumps({"answers": [answer]}), encoding="utf-8")
    (page.parent / "run.json").write_text(json.dumps({"model": unbroken, unbroken: unbroken}), encoding="utf-8")
    (page.parent / "ledger.json").write_text(json.dumps({"rows_dropped": {unbroken: 1}}), encoding="utf-8")
    (page.parent / "recipe.yaml").write_text(unbroken, encoding="utf-8")
    write_run_report(page.parent)
    measure = """
        document.querySelectorAll("details").forEach((fold) => (fold.open = true));
        const root = document.documentElement;
        parent.postMessage(`${innerWidth} ${root.scrollWidth}`, "*");
    """
    found = dom(frame(with_script(page, measure), width))
    inner, scroll = map(int, re.findall(r"<p>(\d+) (\d+)</p>", found)[0])
    assert inner == width and scroll <= width


def test_the_pointer_reads_the_values_of_a_step(page: Path) -> None:
    point = """
        const plot = document.querySelector(".plot"), frame = plot.getBoundingClientRect();
        const clientX = frame.left + (frame.width * (40 - 1)) / (120 - 1);
        plot.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY: frame.top + 5 }));
        document.title = plot.querySelector(".read-out").textContent;
    """
    title = re.findall(r"<title>(step.*?)</title>", dom(with_script(page, point)))[0]
    assert title.startswith("step 40train") and "evaluation0.895" in title
