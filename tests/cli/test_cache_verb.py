"""`honed cache`: what is there, how large and how old, and gone when told."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from honed.cache import cache_folder, work_folder, write_manifest

Honed = Callable[..., Any]


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Entries of before names were kept."""
    monkeypatch.setenv("HONED_CACHE", str(tmp_path / "cache"))
    for age, (kind, size) in enumerate((("models", 5_000_000), ("prepared", 2_000_000))):
        entry = cache_folder(kind) / "one"
        entry.mkdir()
        (entry / "file").write_bytes(b"x" * size)
        os.utime(entry, times=(time.time() - 7200 * age, time.time() - 7200 * age))
    return tmp_path / "cache"


def test_the_newest_comes_first_and_the_sum_last(filled: Path, honed: Honed) -> None:
    lines = honed("cache").out.splitlines()
    assert [line.split()[0] for line in lines] == ["5.0", "2.0", "7.0"]
    assert re.search("models +now +one .*before names", lines[0]) and re.search("prepared +2 h", lines[1])
    assert lines[2].endswith(f"2 entries in {filled}")


def test_one_kind_can_be_cleared(filled: Path, honed: Honed) -> None:
    assert "1 entry deleted" in honed("cache", "clear", "prepared").out
    assert not (filled / "prepared" / "one").exists() and (filled / "models" / "one").exists()
    assert honed("cache", "clear").status == 0
    assert not (filled / "models" / "one").exists()


def test_one_name_can_be_cleared(filled: Path, honed: Honed) -> None:
    for name, about in (("a" * 32, "rows.jsonl, it's 1.csv for tiny: 12 rows"), ("b" * 32, "my_rows.jsonl: 1 row")):
        folder = cache_folder("prepared") / name
        folder.mkdir()
        write_manifest(folder, source_sha256="", converter=1, about=about)
    for name in ("rows.jsonl", "it's 1.csv", "tiny", "aaaa"):
        shown = honed("cache", "show", name)
        assert (
            len(shown.out.splitlines()) == 2 and "aaaaaaaaaaaa  rows.jsonl, it's 1.csv for tiny: 12 rows" in shown.out
        )
    assert honed("cache", "clear", "rows.jsonl").status == 0
    assert {path.name for path in (filled / "prepared").iterdir()} == {"CACHEDIR.TAG", "one", "b" * 32}


def test_an_unknown_name_is_refused(filled: Path, honed: Honed) -> None:
    shown = honed("cache", "clear", "everything")
    assert shown.status == 2 and "is called everything" in shown.err and (filled / "models" / "one").exists()


def test_what_is_being_made_is_said_and_left(filled: Path, honed: Honed) -> None:
    with work_folder(filled / "models") as work:
        assert "(being made)" in honed("cache").out
        honed("cache", "clear")
        assert work.exists()


def test_prepared_data_say_what_they_are(
    train: Callable[..., Any], honed: Honed, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("honed.data.prepare.cache.cache_folder", cache_folder)  # tests keep out of it elsewhere
    assert train("--dry-run").status == 0
    shown = honed("cache", "show", "prepared").out
    assert re.search(rf"now +[0-9a-f]{{12}}  {re.escape(rows_file.name)} for \S+: 12 rows, [\d,]+ tokens", shown), shown
