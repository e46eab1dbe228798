"""Generates the page `docs/options.md` from the options: their meanings, rules and old names.

python -c "from honed.train.options.page import write; write()"
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from honed.train.options import legacy, rules
from honed.train.options.config import SFTConfig

PAGE = Path(__file__).resolve().parents[3] / "docs" / "options.md"

INTRODUCTION = """\
# Options

Made from `honed/train` by `python -c "from honed.train.options.page import write; write()"`; do not edit it here.

`SFTConfig` takes every argument of `transformers.TrainingArguments`, and those below. Names and defaults are those of
TRL 1.16; options marked "honed" are its own. [migrating.md](migrating.md) lists what else differs.
"""


def options_page() -> str:
    """Returns the page as Markdown."""
    rows = [(f"`{rule.name}`", "refused" if rule.refuses else "note", rule.message, rule.fix) for rule in rules.RULES]
    renamed = [(f"`{old}`", f"`{new.new}`") for old, new in legacy.RENAMED.items()]
    gone = [(f"`{name}`", why) for name, why in legacy.WITHOUT_EFFECT.items()]
    sections = [
        INTRODUCTION,
        _table(("option", "default", "meaning"), _options()),
        "## What cannot work, and what has no effect\n\nChecked before anything is loaded. A note is logged, kept in "
        "`trainer.notes` and shown by `honed train`.\n",
        _table(("rule", "", "what is told", "fix"), rows),
        "## Old names\n\nTaken by `SFTConfig`, with a note.\n",
        _table(("old", "new"), renamed),
        "Taken without effect:\n",
        _table(("old", "why"), gone),
        "`SFTTrainer` itself takes `tokenizer` (now `processing_class`) and, as TRL 0.12 did, "
        + ", ".join(f"`{name}`" for name in legacy.MOVED)
        + ".\n",
    ]
    return "\n".join(sections)


def write(page: Path = PAGE) -> None:
    """Writes the page."""
    page.write_text(options_page(), encoding="utf-8")


def _options() -> list[tuple[str, str, str]]:
    inherited = {field.name: _default(field) for field in dataclasses.fields(TrainingArguments)}
    meanings = meanings_of(SFTConfig)
    own = [f for f in dataclasses.fields(SFTConfig) if f.name in meanings or inherited.get(f.name) != _default(f)]
    return [
        (f"`{f.name}`", f"`{_default(f)}`", meanings.get(f.name, "as in transformers, except for the default"))
        for f in own
    ]


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return repr(value)


def meanings_of(described: Any) -> dict[str, str]:
    """Returns the description of each argument or attribute in a docstring, on one line."""
    block = re.split(r"^(?:Args|Attributes):\n", inspect.getdoc(described) or "", flags=re.MULTILINE)[-1]
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", block, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
