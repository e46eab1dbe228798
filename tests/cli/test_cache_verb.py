"""`honed cache`: what is there, how large, and gone when told."""

from pathlib import Path

import pytest

from honed.cache import cache_folder
from honed.cli.main import main


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HONED_CACHE", str(tmp_path))
    for kind, size in (("prepared", 2_000_000), ("models", 5_000_000)):
        entry = cache_folder(kind) / "one"
        entry.mkdir()
        (entry / "file").write_bytes(b"x" * size)
    return tmp_path


def test_sizes_are_shown_with_their_sum(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["5.0", "2.0", "7.0"] and str(filled) in lines[-1]


def test_one_kind_can_be_cleared(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "clear", "prepared"]) == 0
    assert not (filled / "prepared" / "one").exists() and (filled / "models" / "one").exists()
    assert "2.0 MB  deleted" in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert not (filled / "models" / "one").exists()


def test_an_unknown_kind_is_refused(filled: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["cache", "clear", "everything"])
    assert stopped.value.code == 2
