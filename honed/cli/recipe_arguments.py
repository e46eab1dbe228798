"""A recipe as a command line names it: a file or one that comes with honed, then changes to it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from honed.errors import RecipeError

if TYPE_CHECKING:
    from honed.recipe import Recipe


RECIPE_SUFFIXES = (".yaml", ".yml")


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that a command line names, with its changes; options that are not there change nothing.

    Raises:
        RecipeError: see `load_recipe` and `divide`.
    """
    from honed.recipe import load_recipe

    shorts = [(key, getattr(args, key, None)) for key in ("model", "engine", "output")]
    _refuse_bytes([*args.items, *(args.data or ()), *(value or "" for _, value in shorts)])
    # `--data FILE learning_rate=1e-4`: argparse takes what follows for files
    files = [item for item in args.data or () if "=" not in item or Path(item).exists()]
    path, changes = divide([*args.items, *(item for item in args.data or () if item not in files)])
    changes += [f"{key}={_quoted(value)}" for key, value in shorts if value]
    if files:
        changes.append(f"data.files=[{', '.join(map(_quoted, files))}]")
    return load_recipe(path, changes)


def divide(items: list[str]) -> tuple[Path | None, list[str]]:
    """The recipe's path, if one is named first, and the changes to it.

    Raises:
        RecipeError: an item is neither a recipe nor key=value.
    """
    if not items or "=" in items[0]:
        return None, list(items)
    return find_recipe(items[0]), items[1:]


def find_recipe(name: str) -> Path:
    """A YAML file, or a recipe that comes with honed.

    Raises:
        RecipeError: there is no such recipe.
    """
    packaged = Path(__file__).parent.parent / "recipes"
    if name.endswith(RECIPE_SUFFIXES):
        path = Path(name)
        if path.is_file():
            return path
        raise RecipeError(f"No such recipe: {name}", fix="check the path")
    path = packaged / f"{name}.yaml"
    if path.is_file():
        return path
    known = ", ".join(sorted(file.stem for file in packaged.glob("*.yaml")))
    raise RecipeError(
        f"{name!r} is neither a recipe file (.yaml) nor one that comes with honed ({known}) nor key=value.",
        fix="for data, write --data FILE; for a model, --model NAME",
    )


def _refuse_bytes(arguments: list[str]) -> None:
    """Characters that the system's encoding lacks come as raw bytes, which no recipe can hold."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise RecipeError(
                f"{argument!a} is not text in this system's encoding ({sys.getfilesystemencoding()}).",
                fix="export PYTHONUTF8=1, or give the file another name",
            )


def _quoted(text: str) -> str:
    """As YAML that is this text, whatever is in it."""
    return "'" + text.replace("'", "''") + "'"
