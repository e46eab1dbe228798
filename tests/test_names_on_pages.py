"""What can be chosen or asked for by a name has that name on its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from honed.data.read.formats import FORMATS
from honed.ops.token_factor import KINDS
from honed.prove.prove import STATEMENTS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = {
    "data.md": [f"| `{name}` |" for name in FORMATS],
    "options.md": [f'"{name}"' for name in KINDS],
    "proof.md": [f"| {name.partition(' (')[0]} |" for name in STATEMENTS],
}


@pytest.mark.parametrize("page", PAGES)
def test_names_are_on_their_page(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    missing = [name for name in PAGES[page] if name not in text]
    assert not missing, f"docs/{page} says nothing of {missing}"
