"""Other trainers' YAML: written, translated, and read back as the recipe that honed would train."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from honed.recipe import Recipe, load_recipe

Write = Callable[[str], Path]
Made = Callable[..., Recipe]


@pytest.fixture
def theirs(tmp_path: Path) -> Write:
    """Writes a foreign file."""

    def write(text: str) -> Path:
        path = tmp_path / "theirs.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def made(honed: Any, theirs: Write, tmp_path: Path) -> Made:
    """The recipe that the command writes, as `honed train` loads it."""

    def make(text: str, *options: str) -> Recipe:
        out = tmp_path / "mine.yaml"
        out.unlink(missing_ok=True)
        shown = honed("new", "recipe", theirs(text), out, *options)
        assert shown.status == 0, shown.err
        return load_recipe(out)

    return make
