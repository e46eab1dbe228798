"""The table of docs/recipes.md: where a recipe and SFTConfig differ by default."""

from __future__ import annotations

import dataclasses
import re
from enum import Enum
from pathlib import Path
from typing import Any

from honed.recipe import Recipe
from honed.train.options.config import SFTConfig
from honed.train.run.run import training_arguments

PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"
ROW = re.compile(r"^\| `(\w+)`[^|]*\| `([^`]+)` \| `([^`]+)` \|", re.MULTILINE)
ALIASES = {"activation_checkpointing"}  # transformers' newer name of gradient_checkpointing
OF_THE_PROCESS = {"disable_tqdm"}  # follows the level of transformers' logger


def shown(value: Any) -> str:
    return str(value.value if isinstance(value, Enum) else value)


def test_the_page_names_all_defaults_that_differ_and_no_others() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Recipe and SFTConfig")[2]
    said = {name: (recipe, python) for name, recipe, python in ROW.findall(table)}
    recipe, python = training_arguments(Recipe()), SFTConfig()
    names = {field.name for field in dataclasses.fields(SFTConfig)} - ALIASES - OF_THE_PROCESS
    both = {name: (shown(getattr(recipe, name)), shown(getattr(python, name))) for name in names}
    assert said == {name: values for name, values in both.items() if values[0] != values[1]}
