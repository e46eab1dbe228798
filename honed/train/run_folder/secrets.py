"""Masks keys and passwords in a run's files: recipe, command line, report, and pickled arguments."""

from __future__ import annotations

import copy
import dataclasses
import re
import shlex
from collections.abc import Mapping
from typing import Any

from honed.data.lint.text import SECRETS
from honed.recipe import Recipe, as_yaml, recipe_from

MASK = "<masked>"

# Listed explicitly, because `eos_token`, `max_new_tokens`, `token_metrics` and the like are not secrets.
_NAMES = (
    r"(?:(?:\w*_)?(?:hub|hf|auth|access|api|bearer|refresh)_?token|token"
    r"|(?:\w*_)?(?:api|access|secret|private)_?key|(?:\w*_)?(?:password|passwd|secret))"
)
_NAME = re.compile(_NAMES, re.IGNORECASE)
_NAMED = re.compile(
    rf"""(?<!\w) (?P<key> {_NAMES} (?!\w) ["']? \s*[:=]\s* )
        (?: "(?P<double>(?:[^"\\\n]|\\.)+)" | '(?P<single>[^'\n]+)' | (?P<bare>[^\s,"'{{}}\[\]]+) )""",
    re.IGNORECASE | re.VERBOSE,
)
_SAYS_NOTHING = {"true", "false", "null", "none", MASK}
# user:password@host, or only a token before the host
_IN_URLS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)(?:[^\s/:@'\"]*:[^\s/@'\"]+|[^\s/:@'\"]{20,})@", re.IGNORECASE)


def masked(text: str) -> str:
    """Replaces keys, tokens and passwords, recognised by name, form or position in a URL, with `<masked>`."""
    text = _IN_URLS.sub(rf"\1{MASK}@", _NAMED.sub(_without_value, text))
    for literal, pattern in SECRETS:
        if literal in text:
            text = pattern.sub(MASK, text)
    return text


def masked_values(value: Any) -> Any:
    """Masks a JSON value: secrets in every string, and whole strings under a key that names a secret."""
    if isinstance(value, Mapping):
        return {key: MASK if _hides(key, item) else masked_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked_values(item) for item in value]
    return masked(value) if isinstance(value, str) else value


def masked_command(command: str) -> str:
    """Masks a command line whose arguments may be `key=value`."""
    try:
        return shlex.join(map(_masked_argument, shlex.split(command)))
    except ValueError:  # not valid shell syntax
        return masked(command)


def masked_yaml(recipe: Recipe) -> str:
    """Returns the recipe as valid YAML with its secrets masked."""
    return as_yaml(recipe_from(masked_values(dataclasses.asdict(recipe))))


def sealed_arguments(args: Any) -> Any:
    """Returns a copy of training arguments that works the same, and whose pickle contains no secrets.

    transformers pickles its arguments into `training_args.bin`, and needs their `hub_token` to upload. Unpickled, they
    have the original class, None in fields that name a secret, and masks inside other values.
    """
    kind = type(args)

    def reduced(self: Any, protocol: Any) -> Any:
        return object.__new__, (kind,), _without_secrets(vars(self))

    sealed = copy.copy(args)
    sealed.__class__ = type(kind.__name__, (kind,), {"__reduce_ex__": reduced})
    return sealed


def _without_secrets(fields: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: value for key, value in fields.items() if isinstance(value, (str, dict, list))}
    kept = {key: None if _hides(key, value) else masked_values(value) for key, value in texts.items()}
    return {**fields, **kept}


def _masked_argument(argument: str) -> str:
    key, equals, value = argument.partition("=")
    return f"{key}={MASK}" if equals and _hides(key, value) else masked(argument)


def _hides(key: object, value: object) -> bool:
    name = str(key).rpartition(".")[2]
    return isinstance(value, str) and value.lower() not in _SAYS_NOTHING and bool(_NAME.fullmatch(name))


def _without_value(match: re.Match[str]) -> str:
    value = match["double"] or match["single"] or match["bare"]
    if value.lower() in _SAYS_NOTHING:
        return match[0]
    quote = '"' if match["double"] else "'" if match["single"] else ""
    return f"{match['key']}{quote}{MASK}{quote}"
