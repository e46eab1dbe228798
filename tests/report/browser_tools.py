"""Headless Chromium for tests that look at pages. It is no test itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def need_chromium() -> None:
    """Skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium, google-chrome or chromium-browser on PATH")


def chromium(page: Path, *arguments: str) -> str:
    """What Chromium prints, with a profile of its own."""
    with tempfile.TemporaryDirectory(prefix="honed-chromium-", ignore_cleanup_errors=True) as profile:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *arguments, page.as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode("utf-8", "replace")


def dom(page: Path) -> str:
    """The page as it stands after its scripts."""
    return chromium(page, "--virtual-time-budget=2000", "--dump-dom")


def with_script(page: Path, script: str, name: str = "with-script.html") -> Path:
    """A copy of the page, without its policy, that runs one more script."""
    source = page.read_text(encoding="utf-8")
    without_policy, found = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    assert found == 1
    copy = page.with_name(name)
    copy.write_text(without_policy.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return copy


def frame(page: Path, width: int) -> Path:
    """A page that shows the other as wide as a phone, and what that one says of itself.

    Chromium's own windows are never under 500 pixels.
    """
    wrapper = page.with_name(f"frame-{width}.html")
    source = f"""<!doctype html><body style="margin:0;background:#000"><p></p>
        <script>onmessage = (event) => document.querySelector("p").textContent = event.data</script>
        <iframe src="{page.name}" style="border:0;width:{width}px;height:1400px"></iframe>"""
    wrapper.write_text(source, encoding="utf-8")
    return wrapper
