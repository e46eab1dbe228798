"""The keys of another trainer's YAML become lines of a recipe, by that trainer's table.

Each key ends in exactly one of four lists: translated, passed (an argument of training that goes below `train` as it
is), needless here, or not taken; the last two with the reason.
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
    """One line of a recipe, with its key as `honed train` takes it: "data.max_length"."""

    key: str
    value: Any
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a key is not taken, and what to do about it."""

    why: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What becomes of a key: by `to`, `values`, `needless`, `refusal` or `group`.

    Attributes:
        to: the recipe's key; without `values` their value is taken as it is.
        values: their value -> ours, None for "nothing to write"; another value of theirs is not taken, by `refusal`.
        needless: why nothing of it is needed here.
        refusal: why it is not taken; where its value is false, 0, empty or in `off` it has no effect, and is needless.
        group: name of the trainer's function that reads it together with others.
    """

    to: str = ""
    values: Mapping[Any, Any] | None = None
    needless: str = ""
    refusal: Refusal | None = None
    off: tuple[Any, ...] = ()
    group: str = ""


def to(key: str, values: Mapping[Any, Any] | None = None) -> Rule:
    """A key with another name here, and perhaps other values."""
    return Rule(to=key, values=values)


def only(value: Any, why: str, fix: str = "leave it out") -> Rule:
    """A key with one value that says nothing, as it is so here; why others are not taken."""
    return Rule(values={value: None}, refusal=Refusal(why=why, fix=fix))


def rules_of(names: str, rule: Rule) -> dict[str, Rule]:
    """The same rule for several keys, which are parted by spaces; `galore_*` stands for all that begin so."""
    return dict.fromkeys(names.split(), rule)


def needless(names: str, why: str) -> dict[str, Rule]:
    """Keys of which nothing is needed here."""
    return rules_of(names, Rule(needless=why))


def refused(names: str, why: str, fix: str = "leave it out", off: tuple[Any, ...] = ()) -> dict[str, Rule]:
    """Keys that are not taken, unless they are switched off."""
    return rules_of(names, Rule(refusal=Refusal(why=why, fix=fix), off=off))


KEEP = "keep the other trainer for it; models saved by honed load there"
# What all of them have, mostly because transformers' Trainer has it.
EVERYWHERE: Mapping[str, Rule] = MappingProxyType({
    **needless("trust_remote_code", "recipes run transformers' own classes; a model that needs other code is refused"),
    **needless("hub_token *_hub_token hf_use_auth_token", "secrets do not belong into recipes: export HF_TOKEN"),
    **needless("fsdp fsdp_* fp8_enable_fsdp_float8_all_gather",
               "weights are sharded by `accelerate launch --config_file fsdp2.yaml` (docs/distributed.md)"),
    **needless("remove_unused_columns", "columns that are not read are counted in the ledger"),
    **needless("gradient_checkpointing_kwargs", "layers are recomputed whole"),
    **refused("resume_from_checkpoint", "another trainer's checkpoint cannot be gone on from",
              "name the model that it saved"),
})  # fmt: skip


class Draft:
    """A recipe in the making; `template` is the text of a Jinja file that has to stand beside it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.template = ""
        self.lines: dict[str, Line] = {}
        self.needless: dict[str, str] = {}
        self.refused: dict[str, Refusal] = {}
        self.passed: list[str] = []
        self.translated: list[str] = []

    def put(self, key: str, value: Any, comment: str = "") -> None:
        """Writes a line, in place of one that has the same key; YAML 1.1 read 1e-4 in it as text."""
        self.lines[key] = Line(key=key, value=as_number(value), comment=comment)

    def skip(self, key: str, why: str) -> None:
        """Their key is not needed."""
        self.needless[key] = why

    def refuse(self, key: str, why: str, fix: str) -> None:
        """Their key is not taken; of several reasons the first is told."""
        self.refused.setdefault(key, Refusal(why=why, fix=fix))


Group = Callable[[Draft, Values], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Another trainer.

    Attributes:
        name: as people write it.
        rules: their key, or a pattern, -> what becomes of it.
        groups: functions for keys that only make sense together; each is called, with those of its keys that the file
            has, so that it can write their defaults, too.
        defaults: what they do where the file says nothing and a recipe would do another thing.
        arguments: names of the arguments of training that pass below `train`; imported only when needed.
        means_null: keys in which an empty value says something.
    """

    name: str
    rules: Mapping[str, Rule]
    groups: Mapping[str, Group]
    defaults: tuple[tuple[str, Any], ...]
    arguments: Callable[[], frozenset[str]]
    means_null: frozenset[str] = field(default_factory=frozenset)

    def rule(self, key: str) -> Rule | None:
        """The key's own rule, or that of the first pattern that fits."""
        fits = (rules[name] for rules in (self.rules, EVERYWHERE) for name in rules if fnmatchcase(key, name))
        return self.rules.get(key) or next(fits, None)


def translate(theirs: Values, trainer: Trainer, place: Path) -> Draft:
    """The recipe's lines, and what became of every key.

    Args:
        theirs: the other trainer's file, as YAML gives it.
        place: where that file lies; its data may be described beside it.

    Raises:
        RecipeError: a value is of a kind that the other trainer would not take either.
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
                f"{place}: a value of {keys} is not what {trainer.name} takes: {first_line(error)}", fix="mend it"
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
    """An argument of training by its name of today or an older one; anything else is not known."""
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
        fix = close if close.startswith("did") else "mend its name, or leave it out"
        draft.refuse(key, "honed has nothing for it", fix)


def argument(key: str, value: Any) -> Any:
    """The value as an argument of training; YAML 1.1 read `no` as false."""
    return "no" if value is False and key.endswith("_strategy") else value


def as_number(value: Any) -> Any:
    """A text such as 1e-4 as the number, in lists and mappings, too; anything else as it is."""
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
    """A list, or a text of names with commas between them, as a list."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value or ())


def transformers_arguments() -> frozenset[str]:
    """Names of the arguments of transformers' TrainingArguments."""
    from dataclasses import fields

    from transformers import TrainingArguments

    return frozenset(f.name for f in fields(TrainingArguments) if f.init)
