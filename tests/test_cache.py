"""The cache: where it is, what may be deleted from it, and folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from honed import cache
from honed.cache import (
    MANIFEST,
    TAG_FILE,
    cache_entries,
    cache_errors,
    cache_folder,
    cache_root,
    clear_cache,
    manifest_fault,
    publish,
    work_folder,
    write_manifest,
)
from honed.errors import RunError

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot tell a dead process by its number")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HONED_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return cache_folder("models", root=tmp_path / "cache")


@pytest.fixture
def dead_pid() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        yield process.pid


def sound_model(folder: Path, content: str = "weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(content)
    write_manifest(folder, source_sha256="abc", converter=1)
    return folder


def fault(folder: Path) -> str | None:
    return manifest_fault(folder, source_sha256="abc", converter=1)


# -- where --


def test_root_is_what_the_user_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "honed"
    monkeypatch.setenv("HONED_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


@pytest.mark.skipif(sys.platform == "win32", reason="~/.cache is for other platforms")
def test_root_without_settings_or_with_a_relative_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_root() == Path.home() / ".cache" / "honed"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == Path.home() / ".cache" / "honed"


def test_root_on_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cache, "sys", SimpleNamespace(platform="win32"))
    assert cache_root() == Path.home() / "AppData" / "Local" / "honed"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert cache_root() == tmp_path / "honed"


def test_a_folder_that_cannot_be_made_names_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="HONED_CACHE"):
        cache_folder("models", root=tmp_path / "file")


# -- listing and clearing --


def test_entries_and_size(models: Path, tmp_path: Path) -> None:
    sound_model(models / "b", "12345")
    (models / "a").mkdir()
    root = tmp_path / "cache"
    assert [(entry.path.name, entry.kind) for entry in cache_entries(root=root)] == [
        ("a", "models"),
        ("b", "models"),
    ]
    assert sum(entry.size for entry in cache_entries(root=root)) == 5 + (models / "b" / MANIFEST).stat().st_size


def test_an_absent_cache_is_empty(tmp_path: Path) -> None:
    assert cache_entries(root=tmp_path / "no") == []
    assert clear_cache(root=tmp_path / "no") == []


def test_clearing_leaves_what_honed_did_not_make(models: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    (root / "pictures").mkdir()
    (root / "pictures" / "holiday.jpg").write_text("x")
    assert cache_folder("pictures", root=root) == root / "pictures"
    sound_model(models / "a")
    assert [entry.path.name for entry in clear_cache(root=root)] == ["a"]
    assert (root / "pictures" / "holiday.jpg").exists()
    assert not (root / "pictures" / TAG_FILE).exists()
    assert (models / TAG_FILE).read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_clearing_one_kind_or_another(models: Path, tmp_path: Path) -> None:
    sound_model(models / "a")
    assert clear_cache(kind="data", root=tmp_path / "cache") == []
    assert len(clear_cache(kind="models", root=tmp_path / "cache")) == 1


def test_clearing_leaves_what_a_live_process_is_making(models: Path, tmp_path: Path) -> None:
    with work_folder(models) as work:
        assert clear_cache(root=tmp_path / "cache") == []
        assert work.exists()


# -- work folders --


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_half_made_stays(models: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), work_folder(models) as work:
        (work / "half").write_text("x")
        raise error
    assert [path.name for path in models.iterdir()] == [TAG_FILE]


@posix_only
def test_folders_of_dead_processes_are_swept(models: Path, dead_pid: int) -> None:
    left = models / f".work-{cache._host()}-{dead_pid}-0a1b2c3d"
    left.mkdir()
    with work_folder(models):
        assert not left.exists()


def test_folders_of_other_machines_are_swept_after_a_day(models: Path) -> None:
    fresh, old = models / ".work-elsewhere-1-0a", models / ".work-elsewhere-2-0b"
    mine = models / ".work-notes"
    for folder in (fresh, old, mine):
        folder.mkdir()
    day_ago = time.time() - cache.SECONDS_UNTIL_STALE - 60
    os.utime(old, (day_ago, day_ago))
    os.utime(mine, (day_ago, day_ago))
    with work_folder(models):
        assert [folder.exists() for folder in (fresh, old, mine)] == [True, False, True]


def test_a_host_name_with_odd_characters_is_safe(monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    names = SimpleNamespace(gethostname=lambda: "my-host/ü")
    monkeypatch.setattr(cache, "socket", names)
    with work_folder(models) as work:
        assert cache._WORK_NAME.fullmatch(work.name)


# -- publishing --


def test_a_finished_folder_appears_whole(models: Path) -> None:
    with work_folder(models) as work:
        publish(sound_model(work / "model"), models / "final", fault)
    assert fault(models / "final") is None
    assert sorted(path.name for path in models.iterdir()) == [TAG_FILE, "final"]


def test_a_sound_folder_that_came_first_stays(models: Path) -> None:
    sound_model(models / "final", "first")
    with work_folder(models) as work:
        publish(sound_model(work / "model", "second"), models / "final", fault)
    assert (models / "final" / "model.safetensors").read_text() == "first"


def test_a_broken_folder_is_replaced(models: Path) -> None:
    (sound_model(models / "final", "first") / "model.safetensors").write_text("fir")
    with work_folder(models) as work:
        publish(sound_model(work / "model", "second"), models / "final", fault)
    assert (models / "final" / "model.safetensors").read_text() == "second"
    assert sorted(path.name for path in models.iterdir()) == [TAG_FILE, "final"]


def test_a_file_in_the_way_is_replaced(models: Path) -> None:
    (models / "final").write_text("?")
    with work_folder(models) as work:
        publish(sound_model(work / "model"), models / "final", fault)
    assert fault(models / "final") is None


def test_a_rename_that_fails_otherwise_is_told(models: Path, tmp_path: Path) -> None:
    with work_folder(models) as work, pytest.raises(FileNotFoundError):
        publish(sound_model(work / "model"), tmp_path / "no" / "final", fault)


def test_cache_errors_name_the_place_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No space is left") as caught, cache_errors(tmp_path):
        raise OSError(28, "No space left on device")
    assert str(tmp_path) in caught.value.problem
    assert "HONED_CACHE" in caught.value.fix


# -- the manifest --


def test_faults(tmp_path: Path) -> None:
    folder = sound_model(tmp_path / "a")
    assert fault(folder) is None
    assert fault(tmp_path / "none") == f"it has no {MANIFEST}"
    assert manifest_fault(folder, source_sha256="abd", converter=1) is not None
    assert manifest_fault(folder, source_sha256="abc", converter=2) is not None
    (folder / "model.safetensors").write_text("weigh")
    assert fault(folder) == "model.safetensors has 5 of 7 bytes"
    (folder / "model.safetensors").unlink()
    assert fault(folder) == "model.safetensors has 0 of 7 bytes"


def test_contents_are_compared_where_a_file_was_written_to(tmp_path: Path) -> None:
    folder = sound_model(tmp_path / "a")
    copied = Path(shutil.copytree(folder, tmp_path / "copied", copy_function=shutil.copyfile))
    assert (copied / "model.safetensors").stat().st_mtime_ns != (folder / "model.safetensors").stat().st_mtime_ns
    assert fault(copied) is None
    (folder / "model.safetensors").write_text("weighty")
    assert fault(folder) == "model.safetensors is not what was written"


def test_folders_of_before_sums_were_kept_are_sound(tmp_path: Path) -> None:
    folder = sound_model(tmp_path / "a")
    record = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({k: v for k, v in record.items() if k not in ("crc32", "written_ns")}))
    assert fault(folder) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"source_sha256": "abc", "converter": 1, "files": 3}'])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    folder = sound_model(tmp_path / "a")
    (folder / MANIFEST).write_text(text)
    assert fault(folder) == f"its {MANIFEST} cannot be read"
