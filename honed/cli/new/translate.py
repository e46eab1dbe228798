"""Translates the keys of another trainer's YAML into lines of a recipe, by that trainer's table.

Each key ends up in exactly one of four lists: translated, passed (a training argument that goes below `train`
unchanged), needless, or refused; the last two with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

from honed.errors import HonedError, RecipeError, first_line
from honed.recipe import suggest

EMPTY = "empty"
OFF = "switched off"
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a recipe, with its key as for `honed train`: "data.max_length"."""

    key: str
    value: Any
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a key is refused, and what to do about it."""

    why: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a key is handled: by `to`, `values`, `needless`, `refusal` or `group`.

    Attributes:
        to: the recipe's key; without `values` their value is kept.
        values: their value -> ours, None to write nothing; other values are refused with `refusal`.
        needless: why it is not needed.
        refusal: why it is refused; if its value is false, 0, empty or in `off` it has no effect, and is needless.
        group: name of the trainer's function that reads it together with others.
    """

    to: str = ""
    values: Mapping[Any, Any] | None = None
    needless: str = ""
    refusal: Refusal | None = None
    off: tuple[Any, ...] = ()
    group: str = ""


def to(key: str, values: Mapping[Any, Any] | None = None) -> Rule:
    """A key with another name in a recipe, and possibly other values."""
    return Rule(to=key, values=values)


def only(value: Any, why: str, fix: str = "leave it out") -> Rule:
    """A key with one value that is a recipe's behaviour anyway, and why other values are refused."""
    return Rule(values={value: None}, refusal=Refusal(why=why, fix=fix))


def rules_of(names: str, rule: Rule) -> dict[str, Rule]:
    """The same rule for several keys, separated by spaces; `galore_*` matches all keys that begin so."""
    return dict.fromkeys(names.split(), rule)


def needless(names: str, why: str) -> dict[str, Rule]:
    """Keys that are not needed in a recipe."""
    return rules_of(names, Rule(needless=why))


def refused(names: str, why: str, fix: str = "leave it out", off: tuple[Any, ...] = ()) -> dict[str, Rule]:
    """Keys that are refused unless they are switched off."""
    return rules_of(names, Rule(refusal=Refusal(why=why, fix=fix), off=off))


KEEP = "keep the other trainer for it; models saved by honed load there"
# Keys that all trainers have, mostly from transformers' Trainer.
EVERYWHERE: Mapping[str, Rule] = MappingProxyType({
    **needless("trust_remote_code", "recipes run transformers' own classes; a model that needs other code is refused"),
    **needless("hub_token *_hub_token hf_use_auth_token", "secrets do not belong into recipes: export HF_TOKEN"),
    **needless("fsdp fsdp_* fp8_enable_fsdp_float8_all_gather",
               "weights are sharded by `accelerate launch --config_file fsdp2.yaml` (docs/distributed.md)"),
    **needless("remove_unused_columns", "columns that are not read are counted in the ledger"),
    **needless("gradient_checkpointing_kwargs", "layers are recomputed whole"),
    **refused("resume_from_checkpoint", "another trainer's checkpoint cannot be resumed",
              "name the model that it saved"),
})  # fmt: skip


class Draft:
    """A recipe that is being created; `template` is the text of a Jinja file to write next to it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.template = ""
        self.lines: dict[str, Line] = {}
        self.needless: dict[str, str] = {}
        self.refused: dict[str, Refusal] = {}
        self.passed: list[str] = []
        self.translated: list[str] = []

    def put(self, key: str, value: Any, comment: str = "") -> None:
        """Writes a line, replacing one with the same key; converts 1e-4, which YAML 1.1 reads as text."""
        self.lines[key] = Line(key=key, value=as_number(value), comment=comment)

    def skip(self, key: str, why: str) -> None:
        """Marks a key as not needed."""
        self.needless[key] = why

    def refuse(self, key: str, why: str, fix: str) -> None:
        """Marks a key as refused; the first of several reasons is kept."""
        self.refused.setdefault(key, Refusal(why=why, fix=fix))


Group = Callable[[Draft, Values], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Another trainer.

    Attributes:
        name: the trainer's name, for messages.
        rules: their key, or a pattern -> how it is handled.
        groups: functions for keys that only make sense together; each is always called, with those of its keys that
            the file has, so that it can also write defaults.
        defaults: their defaults that differ from a recipe's.
        arguments: names of the training arguments that pass below `train`; imported only when needed.
        means_null: keys for which an empty value has a meaning.
    """

    name: str
    rules: Mapping[str, Rule]
    groups: Mapping[str, Group]
    defaults: tuple[tuple[str, Any], ...]
    arguments: Callable[[], frozenset[str]]
    means_null: frozenset[str] = field(default_factory=frozenset)

    def rule(self, key: str) -> Rule | None:
        """Returns the key's own rule, or that of the first matching pattern."""
        fits = (rules[name] for rules in (self.rules, EVERYWHERE) for name in rules if fnmatchcase(key, name))
        return self.rules.get(key) or next(fits, None)


def translate(theirs: Values, trainer: Trainer, place: Path) -> Draft:
    """Returns the recipe's lines, and how every key was handled.

    Args:
        theirs: the other trainer's file, parsed as YAML.
        place: the path of that file; its data may be described next to it.

    Raises:
        RecipeError: a value has a type that the other trainer would not accept either.
    """
    draft = Draft(place)
    groups: dict[str, dict[str, Any]] = {name: {} for name in trainer.groups}
    for key, value in theirs.items():
        rule = trainer.rule(key)
        if value is None and key not in trainer.means_null:
            draft.skip(key, EMPTY)
        elif rule is not None and rule.group:
            groups[rule.group][key] = value
        elif rule is not None:
            _apply(draft, key, value, rule)
        else:
            _pass(draft, key, value, trainer)
    for name, read in trainer.groups.items():
        try:
            read(draft, groups[name])
        except HonedError:
            raise
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            keys = ", ".join(groups[name])
            raise RecipeError(
                f"{place}: a value of {keys} is not what {trainer.name} takes: {first_line(error)}", fix="correct it"
            ) from None
    for key, value in trainer.defaults:
        if key not in draft.lines:
            draft.put(key, value, f"{trainer.name}'s default")
    left = {*draft.needless, *draft.refused, *draft.passed}
    draft.translated = [key for key in theirs if key not in left]
    return draft


def _apply(draft: Draft, key: str, value: Any, rule: Rule) -> None:
    if rule.values is not None:
        _choose(draft, key, value, rule, rule.values)
    elif rule.needless:
        draft.skip(key, rule.needless)
    elif rule.refusal is None:
        draft.put(rule.to, value)
    elif value and value not in rule.off:
        draft.refuse(key, rule.refusal.why, rule.refusal.fix)
    else:
        draft.skip(key, OFF)


def _choose(draft: Draft, key: str, value: Any, rule: Rule, values: Mapping[Any, Any]) -> None:
    if not isinstance(value, (str, int, float)) or value not in values:
        known = Refusal(why="no such value here", fix=f"write one of {', '.join(map(str, values))}")
        refusal = rule.refusal or known
        draft.refuse(key, refusal.why, refusal.fix)
    elif values[value] is not None:
        draft.put(rule.to, values[value])


def _pass(draft: Draft, key: str, value: Any, trainer: Trainer) -> None:
    """Passes on a training argument, by its current or an older name; anything else is unknown."""
    from honed.train.options.legacy import RENAMED, WITHOUT_EFFECT

    known = trainer.arguments()
    if key in known:
        draft.passed.append(key)
        draft.put(f"train.{key}", argument(key, value))
    elif key in RENAMED:
        renamed = RENAMED[key]
        draft.put(f"train.{renamed.new}", renamed.value(value) if renamed.value else argument(renamed.new, value))
    elif key in WITHOUT_EFFECT:
        draft.skip(key, WITHOUT_EFFECT[key])
    else:
        close = suggest(key, {*known, *(name for name in trainer.rules if "*" not in name)})
        fix = close if close.startswith("did") else "correct its name, or leave it out"
        draft.refuse(key, "honed has nothing for it", fix)


def argument(key: str, value: Any) -> Any:
    """Returns the value as a training argument; YAML 1.1 reads `no` as false."""
    return "no" if value is False and key.endswith("_strategy") else value


def as_number(value: Any) -> Any:
    """Converts a text such as 1e-4 to a number, also in lists and mappings; returns anything else unchanged."""
    if isinstance(value, Mapping):
        return {key: as_number(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_number(item) for item in value]
    if not (isinstance(value, str) and value[:1] in "0123456789.-+" and "e" in value.lower()):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def as_list(value: Any) -> list[Any]:
    """Returns a list, or comma-separated names, as a list."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value or ())


def transformers_arguments() -> frozenset[str]:
    """Returns the names of the arguments of transformers' TrainingArguments."""
    from dataclasses import fields

    from transformers import TrainingArguments

    return frozenset(f.name for f in fields(TrainingArguments) if f.init)
