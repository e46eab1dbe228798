"""Questions with answers that a program can check, from a small YAML file.

- prompt: What is 2 + 2? Answer with the number only.
  expect: {exact: "4"}
- messages: [{role: system, content: Answer in JSON.}, {role: user, content: Who wrote Faust?}]
  expect: {json_schema: {type: object, required: [author]}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from honed.data.example import ROLES, Message
from honed.errors import MissingExtraError, RecipeError
from honed.generate.answer import ask
from honed.recipe import strict_yaml

Check = Callable[[str], bool]
FORM = "a list of {prompt: TEXT or messages: [...], expect: {exact, contains, regex or json_schema: ...}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A question and a check of its answer.

    Attributes:
        messages: the conversation before the answer.
        kind: "exact", "contains", "regex" or "json_schema".
        wanted: what the check expects, as text.
        check: answer -> whether it is right.
    """

    messages: tuple[Message, ...]
    kind: str
    wanted: str
    check: Check


def read_tasks(path: Path, *, system: str | None = None) -> list[Task]:
    """The tasks of a YAML file; `system` is the system prompt of tasks given as a `prompt`.

    Raises:
        RecipeError: the file cannot be read, or a task is malformed; the message gives its number.
        MissingExtraError: a task has a JSON schema, but `jsonschema` is not installed.
    """
    try:
        found = strict_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} could not be read as YAML: {error}", fix=f"write {FORM}") from None
    if not isinstance(found, list) or not found:
        raise RecipeError(f"{path} does not hold a list of tasks.", fix=f"write {FORM}")
    return [_task(item, f"{path}, task {number}", system) for number, item in enumerate(found, 1)]


def _task(item: Any, place: str, system: str | None) -> Task:
    if not isinstance(item, Mapping) or set(item) not in ({"prompt", "expect"}, {"messages", "expect"}):
        found = ", ".join(map(str, item)) if isinstance(item, Mapping) else type(item).__name__
        raise RecipeError(f"{place} has {found or 'nothing'}.", fix=f"write {FORM}")
    expect = item["expect"]
    if not isinstance(expect, Mapping) or len(expect) != 1 or next(iter(expect)) not in CHECKS:
        raise RecipeError(f"{place} expects {expect!r}.", fix=f"expect: one of {', '.join(CHECKS)}")
    [(kind, wanted)] = expect.items()
    if kind != "json_schema" and not isinstance(wanted, str):
        raise RecipeError(f"{place}: {kind} is {wanted!r}, not text.", fix="put it between quotes")
    text = wanted if isinstance(wanted, str) else json.dumps(wanted, ensure_ascii=False, default=str)
    return Task(messages=_messages(item, place, system), kind=kind, wanted=text, check=CHECKS[kind](wanted, place))


def _messages(item: Mapping[str, Any], place: str, system: str | None) -> tuple[Message, ...]:
    if "prompt" in item:
        if not isinstance(item["prompt"], str):
            raise RecipeError(f"{place}: prompt is {item['prompt']!r}, not text.", fix="put it between quotes")
        return ask(item["prompt"], system)
    found = item["messages"]
    if not isinstance(found, Sequence) or not found or not all(map(_is_message, found)):
        raise RecipeError(
            f"{place}: messages is not a list of {{role, content}}.", fix=f"roles are {', '.join(dict.fromkeys(ROLES))}"
        )
    return tuple(Message(role=ROLES[message["role"]], content=message["content"]) for message in found)


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, Mapping)
        and set(message) == {"role", "content"}
        and message["role"] in ROLES
        and isinstance(message["content"], str)
    )


def _regex(wanted: str, place: str) -> Check:
    try:
        pattern = re.compile(wanted)
    except re.error as error:
        raise RecipeError(f"{place}: regex is not valid: {error}", fix=f"check {wanted!r}") from None
    return lambda answer: pattern.search(answer) is not None


def _json_schema(wanted: Any, place: str) -> Check:
    try:
        jsonschema = import_module("jsonschema")
    except ImportError:
        raise MissingExtraError("jsonschema", "eval") from None
    kind = jsonschema.validators.validator_for(wanted)
    try:
        kind.check_schema(wanted)
    except jsonschema.SchemaError as error:
        raise RecipeError(f"{place}: json_schema is not valid: {error.message}", fix="see json-schema.org") from None
    validator = kind(wanted)

    def check(answer: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(answer)))
        except (ValueError, RecursionError):
            return False

    return check


CHECKS: dict[str, Callable[[Any, str], Check]] = {
    "exact": lambda wanted, place: lambda answer: answer.strip() == wanted.strip(),
    "contains": lambda wanted, place: lambda answer: wanted in answer,
    "regex": _regex,
    "json_schema": _json_schema,
}
