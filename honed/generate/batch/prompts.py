"""Rows of a file -> conversations to answer."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from honed.data.example import Message, Source
from honed.data.read.sources import read_rows
from honed.errors import DataError
from honed.quantities import counted

PLACE = re.compile(r"\{(\w+)\}")
# Self-Instruct, Wang et al. 2022 (arXiv:2212.10560): a few tasks, and the start of the next line of the list.
SHOTS_TEXT = "Here is a list of tasks.\n\n{tasks}\n\nWrite one more task of this kind. Give only the task, on one line."


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The conversation before the answer, and all columns of its row for the verifier."""

    source: Source
    messages: tuple[Message, ...]
    row: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """A hash of the messages."""
        told = json.dumps([(m.role, m.content) for m in self.messages], ensure_ascii=False)
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_prompts(data: Any, *, template: str | None = None) -> Iterator[Prompt]:
    """One prompt per row.

    Args:
        data: anything that `honed.data.read.sources` reads.
        template: text in which `{column}` is replaced with the row's column; other braces are literal. Without it, a
            row's `prompt` is used, or its `messages` without the answers at the end.

    Raises:
        DataError: a row has no prompt, or lacks one of the template's columns.
    """
    for source, row in read_rows(data):
        if not isinstance(row, Mapping):
            raise DataError(f"{source}: expected an object, found {row!r:.80}", fix='such as {"prompt": "..."}')
        messages = _filled(source, row, template) if template else _asked(source, row)
        yield Prompt(source=source, messages=messages, row=row)


def with_system(prompt: Prompt, system: str | None) -> Prompt:
    """The prompt with this system prompt, unless it has its own."""
    if not system or prompt.messages[0].role == "system":
        return prompt
    return replace(prompt, messages=(Message(role="system", content=system), *prompt.messages))


def seed_prompts(tasks: Sequence[str], *, shots: int, count: int, seed: int) -> Iterator[Prompt]:
    """Prompts that each show `shots` random tasks and ask for a new one.

    Raises:
        DataError: there are fewer than `shots` tasks.
    """
    if shots > len(tasks):
        raise DataError(
            f"{counted(shots, 'task is', 'tasks are')} to be shown, and the file has {len(tasks)}.", fix="lower --shots"
        )
    draws = random.Random(seed)
    for number in range(1, count + 1):
        shown = "\n".join(f"{n}. {task}" for n, task in enumerate(draws.sample(tasks, shots), start=1))
        message = Message(role="user", content=SHOTS_TEXT.replace("{tasks}", shown))
        yield Prompt(source=Source(file="seeds", row=number), messages=(message,), row={})


def read_tasks(data: Any) -> list[str]:
    """The seed tasks: each row's `prompt` or `instruction`, on one line, without repeats.

    Raises:
        DataError: a row has neither.
    """
    tasks = []
    for source, row in read_rows(data):
        found = row if isinstance(row, Mapping) else {}
        text = next((found[key] for key in ("prompt", "instruction") if isinstance(found.get(key), str)), "")
        if not text.strip():
            raise DataError(f"{source}: no `prompt` and no `instruction`.", fix='rows like {"prompt": "..."}')
        tasks.append(" ".join(text.split()))
    return list(dict.fromkeys(tasks))


def _filled(source: Source, row: Mapping[str, Any], template: str) -> tuple[Message, ...]:
    missing = [name for name in PLACE.findall(template) if name not in row]
    if missing:
        raise DataError(
            f"{source}: the prompt template names {missing[0]!r}, and the row has {', '.join(map(str, row))}.",
            fix="name one of the row's columns",
        )
    return (Message(role="user", content=PLACE.sub(lambda found: str(row[found[1]]), template)),)


def _asked(source: Source, row: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt, turns = row.get("prompt"), row.get("messages")
    if isinstance(prompt, str) and prompt.strip():
        return (Message(role="user", content=prompt),)
    turns = turns if isinstance(turns, list) else prompt
    if isinstance(turns, list) and (messages := _before_the_answer(turns)):
        return messages
    raise DataError(
        f"{source}: no `prompt` and no `messages`; its columns are {', '.join(map(str, row))}.",
        fix="make the prompt from columns: --prompt-template 'Translate: {text}'",
    )


def _before_the_answer(turns: list[Any]) -> tuple[Message, ...]:
    """Turns as messages, without the answers at the end; () if they are not valid turns."""
    messages = []
    for turn in turns:
        if not (
            isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        ):
            return ()
        messages.append(Message(role=turn["role"].lower(), content=turn["content"]))
    while messages and messages[-1].role == "assistant":
        messages.pop()
    return tuple(messages)
