"""The tables of docs/migrating.md are held against the translation: each row is translated, and gives what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from honed.cli.new.axolotl import AXOLOTL
from honed.cli.new.llamafactory import LLAMAFACTORY
from honed.cli.new.translate import Trainer, translate
from honed.cli.new.trl import TRL

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "migrating.md").read_text(encoding="utf-8")
TRAINERS = {"LLaMA-Factory": LLAMAFACTORY, "axolotl": AXOLOTL, "`trl sft --config`": TRL}


def snippets(cell: str) -> dict[str, Any]:
    """The `key: value` pieces of a table's cell."""
    tree: dict[str, Any] = {}
    for piece in re.findall(r"`([^`]+)`", cell):
        tree |= yaml.safe_load(piece)
    return tree


def rows() -> list[tuple[Trainer, str, str]]:
    found = []
    for title, trainer in TRAINERS.items():
        section = re.split(r"^##", PAGE.split(f"\n### {title}\n")[1], flags=re.MULTILINE)[0]
        table = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
        assert len(table) > 5, title
        found += [(trainer, *cells) for cells in table]
    return found


@pytest.mark.parametrize(("trainer", "theirs", "ours"), rows(), ids=lambda part: getattr(part, "name", part))
def test_each_row_is_what_the_command_does(trainer: Trainer, theirs: str, ours: str) -> None:
    given = snippets(theirs)
    draft = translate(given, trainer, Path("theirs.yaml"))
    lines = {key: line.value for key, line in draft.lines.items()}
    expected = snippets(ours)
    assert expected
    assert {key: lines.get(key, "missing") for key in expected} == expected
    assert not draft.passed
