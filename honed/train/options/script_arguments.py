"""ScriptArguments and TrlParser, under TRL's names (1.16): dataclasses from flags and a YAML file."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from honed.errors import RecipeError
from honed.recipe import strict_yaml
from honed.train.options import legacy
from honed.train.options.model_config import option

logger = logging.getLogger(__name__)

RENAMED = {**legacy.RENAMED, "torch_dtype": legacy.Renamed(new="dtype")}  # torch_dtype is ModelConfig's


@dataclass
class ScriptArguments:
    """The dataset; fields and defaults are TRL's."""

    dataset_name: str | None = option(None, "File, folder or Hub id of the data.")
    dataset_config: str | None = option(None, "Configuration of a Hub dataset.")
    dataset_train_split: str = option("train", "Split to train on.")
    dataset_test_split: str = option("test", "Split to evaluate on.")
    dataset_streaming: bool = option(False, "Read the rows while training.")
    ignore_bias_buffers: bool = option(False, "For models with bool buffers under DistributedDataParallel.")


SFTScriptArguments = ScriptArguments  # its name in TRL before 0.13


class TrlParser(HfArgumentParser):
    """Creates dataclasses from the command line and a YAML file (`--config FILE`).

    Flags override the file, and the file overrides the dataclasses' defaults. `env:` in the file sets environment
    variables. Both accept old names of training options, with a warning.

    Args:
        dataclass_types: one or several dataclasses; none may have a field `config`.
        kwargs: passed to `HfArgumentParser`.

    Raises:
        ValueError: a dataclass has a field `config`.
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any) -> None:
        kinds = list(dataclass_types) if isinstance(dataclass_types, Iterable) else [dataclass_types]
        kinds = [kind for kind in kinds if kind is not None]
        for kind in kinds:
            if "config" in kind.__dataclass_fields__:
                raise ValueError(f"{kind.__name__} has a field 'config', which is the name of the YAML file's flag.")
        super().__init__(dataclass_types=kinds, **kwargs)

    def parse_args_and_config(
        self,
        args: Iterable[str] | None = None,
        return_remaining_strings: bool = False,
        fail_with_unknown_args: bool = True,
        separate_remaining_strings: bool = False,
    ) -> tuple[Any, ...]:
        """Returns an instance of each dataclass, in order.

        Args:
            args: the command line; None for `sys.argv`.
            return_remaining_strings: also return unknown arguments, as a last list `["--key", "value", ...]`.
            fail_with_unknown_args: refuse unknown keys in the file.
            separate_remaining_strings: return two such lists, the file's and the command line's.

        Raises:
            RecipeError: the file cannot be read, or has an unknown key.
        """
        known = {action.dest for action in self._actions}
        flags = _modern_flags(sys.argv[1:] if args is None else args, known)
        path = _take_config(flags)
        unknown = self.set_defaults_with_config(**_modern(_read(path), known)) if path is not None else []
        parsed = self.parse_args_into_dataclasses(args=flags, return_remaining_strings=return_remaining_strings)
        if return_remaining_strings:
            *instances, rest = parsed
            return (*instances, unknown, rest) if separate_remaining_strings else (*instances, unknown + rest)
        if unknown and fail_with_unknown_args:
            raise RecipeError(f"{path} holds keys that match no argument: {' '.join(unknown)}", fix="remove them")
        return tuple(parsed)

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        """Sets these values as defaults, also in sub-parsers; returns unknown ones as flags."""
        used = _set_defaults(self, kwargs)
        return [word for key, value in kwargs.items() if key not in used for word in (f"--{key}", str(value))]


def _set_defaults(parser: argparse.ArgumentParser, values: dict[str, Any]) -> set[str]:
    used: set[str] = set()
    for action in parser._actions:  # argparse has no public way to list them
        if isinstance(action, argparse._SubParsersAction):
            used |= {key for below in action.choices.values() for key in _set_defaults(below, values)}
        elif action.dest in values:
            action.default, action.required = values[action.dest], False
            used.add(action.dest)
    return used


def _modern(config: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Returns the file's values under their new names."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        new = _today(name, known)
        if new == name:
            values[name] = value
        elif new is not None:
            change = RENAMED[name].value
            values[new] = change(value) if change else value
    return values


def _modern_flags(words: Iterable[str], known: Collection[str]) -> list[str]:
    """The same for a command line: `--name value ...`, `--name=value` or `--name` alone."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    return [word for group in groups for word in _modern_flag(group, known)]


def _modern_flag(group: Sequence[str], known: Collection[str]) -> Sequence[str]:
    flag, equals, value = group[0].partition("=") if group else ("", "", "")
    name = flag.removeprefix("--").replace("-", "_")
    new = _today(name, known)
    if new == name:
        return group
    if new is None:
        return []
    values = [value, *group[1:]] if equals else list(group[1:])
    if change := RENAMED[name].value:
        made = change(string_to_bool(values[0]) if values else True)
        values = [made] if isinstance(made, str) else made
    return [f"--{new}", *values]


def _today(name: str, known: Collection[str]) -> str | None:
    """Returns an argument's new name; None if it no longer has an effect."""
    if name in known:
        return name
    if name in RENAMED and RENAMED[name].new in known:
        logger.warning("%s is called %s now.", name, RENAMED[name].new)
        return RENAMED[name].new
    if name in legacy.WITHOUT_EFFECT and "output_dir" in known:  # only in training arguments
        logger.warning("%s has no effect: %s.", name, legacy.WITHOUT_EFFECT[name])
        return None
    return name


def _take_config(flags: list[str]) -> Path | None:
    """Removes `--config FILE` or `--config=FILE` from the flags and returns the file."""
    for index, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        if name != "--config":
            continue
        if not equals and index + 1 == len(flags):
            raise RecipeError("--config needs a file.", fix="write --config FILE.yaml")
        taken = 1 if equals else 2
        path = value if equals else flags[index + 1]
        del flags[index : index + taken]
        return Path(path)
    return None


def _read(path: Path) -> dict[str, Any]:
    """Reads the file, and sets the environment variables in its `env`."""
    try:
        config = strict_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"The config file {path} cannot be read: {error}", fix="name a YAML file") from None
    if not isinstance(config, dict) or not isinstance(config.get("env", {}), dict):
        raise RecipeError(f"{path} does not hold key: value lines.", fix="write lines such as `learning_rate: 2.0e-5`")
    os.environ.update({key: str(value) for key, value in config.pop("env", {}).items()})
    return config
