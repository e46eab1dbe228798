"""What `honed data` reads: files and options, or a recipe's; a single row; and the tokenizer."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.cli.recipe_arguments import RECIPE_SUFFIXES
from honed.errors import DataError, RecipeError

if TYPE_CHECKING:
    from honed.data.prepare.options import PrepareOptions
    from honed.recipe import DataRecipe


MIXED = "All rows of data.sources were checked, with the options of the data section: no weights, caps or own options."


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the arguments request."""

    files: tuple[str, ...]
    model: str | None
    options: PrepareOptions
    evaluation: str | None
    notes: tuple[str, ...] = ()

    def fitted(self, tokenizer: Any) -> Plan:
        """Lowers the default `max_length` to the tokenizer's limit, as in training; unchanged without a tokenizer."""
        from honed.data.prepare.options import lowered_length

        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's
        max_length, notes = lowered_length(self.options.max_length, tokenizer)
        return replace(self, options=replace(self.options, max_length=max_length), notes=(*self.notes, *notes))


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Adds the options that determine what is read, and how."""
    parser.add_argument(
        "items",
        nargs="+",
        metavar="FILE | RECIPE | key=value",
        help="rows, or a recipe; then changes to the data section of a recipe, such as overlong=truncate",
    )
    parser.add_argument("--model", help="name, folder or Hub id; only the tokenizer is needed")
    parser.add_argument("--template", help="short for data.template=...")
    parser.add_argument("--train-on", help="short for data.train_on=...")
    parser.add_argument("--max-length", help="short for data.max_length=...")


def read_plan(args: argparse.Namespace) -> Plan:
    """Returns files, model and options, from the arguments and the recipe, if one is named.

    Raises:
        RecipeError: an option is unknown or has a wrong value.
        DataError: no file is named.
    """
    from honed.data.prepare.options import options_from
    from honed.recipe import load_recipe

    changes = [item for item in args.items if "=" in item and not Path(item).exists()]
    files = [item for item in args.items if item not in changes]
    recipes = [item for item in files if item.endswith(RECIPE_SUFFIXES)]
    if len(recipes) > 1 or not files:
        raise DataError("Name files with rows, or one recipe.", fix="for example: honed data check rows.jsonl")
    changes = [*_shortcuts(args), *map(_data_key, changes)]
    recipe = load_recipe(Path(recipes[0]) if recipes else None, changes)
    rows = tuple(item for item in files if item not in recipes) or _recipe_files(recipe.data)
    return Plan(
        files=rows,
        model=args.model or (recipe.model if recipes else None),
        options=options_from(recipe.data),
        evaluation=args.eval or recipe.data.held_out,
        notes=(MIXED,) if recipes and recipe.data.sources else (),
    )


def _recipe_files(data: DataRecipe) -> tuple[str, ...]:
    """Returns a recipe's files; for a mixture all sources' files, read in full with the section's options."""
    from honed.data.mix.mixture import mixture_from

    if not data.sources:
        return data.files
    parts = mixture_from(data.sources, seed=0).parts
    return tuple(dict.fromkeys(file for part in parts for file in part.data))


def _shortcuts(args: argparse.Namespace) -> list[str]:
    given = {"template": args.template, "train_on": args.train_on, "max_length": args.max_length}
    return [f"data.{key}={value}" for key, value in given.items() if value is not None]


def _data_key(change: str) -> str:
    """Returns the change with its section; only changes to the data section are allowed here."""
    from honed.recipe import DataRecipe, suggest

    key = change.partition("=")[0].removeprefix("data.")
    known = [name for name in DataRecipe.__dataclass_fields__ if name != "files"]
    if key.partition(".")[0] not in known:
        raise RecipeError(f"Unknown key {key!r}: it is not in the data section of a recipe.", fix=suggest(key, known))
    return f"data.{change.removeprefix('data.')}"


def find_row(files: tuple[str, ...], number: int | None) -> tuple[Any, Any]:
    """Returns the source and the row at this line (JSON Lines) or with this number (other files), from 1.

    Args:
        number: None for the first row of the first file.

    Raises:
        DataError: there is no such row, or a number and several files are given.
    """
    from honed.data.read.sources import read_rows

    if number is None:
        return next(iter(read_rows(files[0])))  # it refuses files without rows
    if len(files) != 1:
        raise DataError(f"--row {number} of which file? {len(files)} are named.", fix="name one file")
    last = 0
    for source, row in read_rows(files[0]):
        if source.row == number:
            return source, row
        last = source.row
    raise DataError(f"{files[0]} has no row {number}; its last is {last}.", fix="choose a row up to that one")


def load_tokenizer_and_stops(model: str | None, files: tuple[str, ...]) -> tuple[Any, tuple[int, ...]]:
    """Loads the model's tokenizer and its generation config's stop ids; None and () without a model.

    A folder with only a tokenizer suffices. If the files contain images, a vision model's processor is loaded.

    Raises:
        ModelError: there is no such model.
    """
    if model is None:
        return None, ()
    from honed.cli.console import quiet_libraries
    from honed.data.vision.template import shows_images
    from honed.model.load.load import load_processor, load_tokenizer, resolve_tokenizer, sees_images

    quiet_libraries()
    stops = configured_stops(resolve_tokenizer(model))
    sees = shows_images(list(files)) and sees_images(model)  # for text-only models, the check reports such rows
    return (load_processor if sees else load_tokenizer)(model), stops


def configured_stops(folder: str) -> tuple[int, ...]:
    """Returns `eos_token_id` from generation_config.json, else from config.json; empty if neither is available."""
    import json

    from transformers.utils import cached_file

    for name in ("generation_config.json", "config.json"):
        try:
            path = cached_file(folder, name, _raise_exceptions_for_missing_entries=False)
            found = json.loads(Path(path).read_text(encoding="utf-8")).get("eos_token_id") if path else None
        except (OSError, ValueError):
            continue
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()
