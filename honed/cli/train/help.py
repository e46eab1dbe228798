"""`honed train --help-all`: every key, generated from the classes that define them, so that none is missing."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

WIDTH = 118
NAME = 28


class HelpAll(argparse.Action):
    """An option that prints all keys and exits."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Prints all keys and exits."""
        print(all_keys())
        parser.exit()


def all_keys() -> str:
    """The recipe's keys, honed's training arguments, and the names of transformers' own."""
    from transformers import TrainingArguments

    from honed.data.prepare.options import PrepareOptions
    from honed.model.adapters.adapters import lora_config
    from honed.recipe import SECTIONS, TRAIN_DEFAULTS, Recipe
    from honed.train.options.config import SFTConfig
    from honed.train.options.page import meanings_of

    elsewhere: Mapping[type, Any] = {SECTIONS["data"]: PrepareOptions, SECTIONS["lora"]: lora_config}
    lines = ["Keys of a recipe (key=value on the command line; sections as YAML's)", ""]
    for prefix, kind in (("", Recipe), *((f"{name}.", section) for name, section in SECTIONS.items())):
        meanings = {**(meanings_of(elsewhere[kind]) if kind in elsewhere else {}), **meanings_of(kind)}
        wanted = [f for f in dataclasses.fields(kind) if prefix or f.name not in (*SECTIONS, "train")]
        lines += [*_described(wanted, meanings, prefix), ""]
    inherited = {f.name for f in dataclasses.fields(TrainingArguments)}
    of_data = {f.name for f in dataclasses.fields(SECTIONS["data"])}
    own = [f for f in dataclasses.fields(SFTConfig) if f.name not in inherited | of_data]
    lines += ["Arguments of training: honed's own (honed.SFTConfig); key=value, or below `train:`", ""]
    lines += [*_described(own, meanings_of(SFTConfig), ""), ""]
    lines += ["Arguments of training: transformers' (TrainingArguments), documented there. Of these a recipe sets", ""]
    lines += [*_wrapped(", ".join(f"{key}={value}" for key, value in TRAIN_DEFAULTS.items())), "", "All of them:", ""]
    return "\n".join([*lines, *_wrapped(", ".join(sorted(inherited)))])


def _described(fields: Iterable[dataclasses.Field[Any]], meanings: Mapping[str, str], prefix: str) -> Iterator[str]:
    for field in fields:
        text = f"{meanings.get(field.name, '').removeprefix('honed. ')} [{_default(field)}]".strip()
        first, *rest = textwrap.wrap(text, WIDTH - NAME)
        name = f"  {prefix}{field.name}"
        yield f"{name:<{NAME - 1}} {first}"
        yield from (" " * NAME + line for line in rest)


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    words = {None: "null", True: "true", False: "false"}
    known = words.get(value) if value is None or isinstance(value, bool) else None
    return known or ", ".join(map(str, value)) if isinstance(value, tuple) else known or str(value)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
