"""docs/options.md is what the options themselves say."""

from __future__ import annotations

from pathlib import Path

from honed.train.options import legacy, rules
from honed.train.options.page import PAGE, options_page, write


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == options_page(), (
        'make it anew: python -c "from honed.train.options.page import write; write()"'
    )


def test_it_names_every_option_rule_and_old_name(tmp_path: Path) -> None:
    write(tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    names = [rule.name for rule in rules.RULES] + [*legacy.RENAMED, *legacy.WITHOUT_EFFECT, "max_length", "overlong"]
    assert not [name for name in names if f"`{name}`" not in page]
