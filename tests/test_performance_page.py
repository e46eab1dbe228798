"""The numbers on docs/performance.md and the READMEs are those of the files that they name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))


def tables(*arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "benchmarks/tables.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def copy_of_the_pages(place: Path) -> Path:
    for folder in ("benchmarks/results", "docs"):
        (place / folder).mkdir(parents=True)
    for name in ("benchmarks/tables.py", "docs/performance.md", "README.md", "README.zh-CN.md"):
        (place / name).write_bytes((ROOT / name).read_bytes())
    for file in RESULTS:
        (place / "benchmarks/results" / file.name).write_bytes(file.read_bytes())
    return place


def test_pages_show_what_was_measured() -> None:
    done = tables("--check")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}run: python benchmarks/tables.py"


def test_a_number_changed_by_hand_is_found_and_mended(tmp_path: Path) -> None:
    place = copy_of_the_pages(tmp_path)
    page = place / "docs/performance.md"
    before = page.read_text(encoding="utf-8")
    file = next(file for file in RESULTS if file.name.startswith("data-preparation-"))
    ratio = json.loads(file.read_text(encoding="utf-8"))["results"][0]["ratio"]
    page.write_text(before.replace(f"| {ratio} |", "| 99.9 |"), encoding="utf-8")
    assert page.read_text(encoding="utf-8") != before
    assert tables("--check", root=place).returncode == 1
    assert tables(root=place).returncode == 0
    assert page.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("file", RESULTS, ids=[file.name for file in RESULTS])
def test_results_bear_hardware_and_date(file: Path) -> None:
    record = json.loads(file.read_text(encoding="utf-8"))
    assert file.stem.endswith(record["date"])
    assert "machine" in record
    assert any(f"-{hardware}" in file.stem for hardware in ("cpu", "gpu", "h100", "h200"))
