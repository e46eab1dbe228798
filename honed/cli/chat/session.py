"""The state of a conversation, and the commands that change it; independent of models and screens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.errors import HonedError

if TYPE_CHECKING:
    from honed.data.example import Message
    from honed.recipe import DataRecipe

SEEN = 100  # rows read to learn their system prompt

HELP = """/reset            start over
/undo             take back the last question and its answer
/system [TEXT]    show the system prompt, or change it
/params [K=V ..]  show the settings, or change some: temperature=0.7 top_p=0.9
/save FILE        add the talk to a file of rows to train on
/help             this list
/exit             end (Ctrl-D as well)"""


@dataclass(slots=True, kw_only=True)
class Session:
    """The system prompt, the settings (None for the model's own), and each question with one answer per speaker."""

    system: str | None
    params: dict[str, int | float | None]
    turns: list[tuple[str, list[str]]] = field(default_factory=list)

    def messages(self, question: str | None = None, *, speaker: int = 0) -> list[Message]:
        """The conversation as this speaker knows it, with a new question at its end."""
        from honed.data.example import Message

        opening = [Message(role="system", content=self.system)] if self.system else []
        told = [
            Message(role=role, content=text)
            for asked, answers in self.turns
            for role, text in (("user", asked), ("assistant", answers[speaker]))
        ]
        return [*opening, *told, *([Message(role="user", content=question)] if question is not None else [])]

    def command(self, line: str) -> str:
        """Executes a line that begins with /; returns the text to show."""
        name, _, rest = line.partition(" ")
        does = _COMMANDS.get(name)
        return does(self, rest.strip()) if does else f"(there is no {name}; /help lists what there is)"

    def _reset(self, rest: str) -> str:
        self.turns.clear()
        return "(begun anew)"

    def _undo(self, rest: str) -> str:
        if not self.turns:
            return "(nothing to take back)"
        question, _ = self.turns.pop()
        return f"(taken back: {question})"

    def _system(self, rest: str) -> str:
        if rest:
            self.system = rest
        return f"(system: {self.system or 'none'})"

    def _params(self, rest: str) -> str:
        changed = dict(self.params)
        for item in rest.split():
            name, _, text = item.partition("=")
            if name not in changed:
                return f"(no setting {name!r}; there are {', '.join(changed)})"
            try:
                changed[name] = read_param(name, text)
            except ValueError as error:
                return f"({name}={text}: {error})"
        self.params = changed
        return "(" + ", ".join(f"{k}={'own' if v is None else v}" for k, v in changed.items()) + ")"

    def _save(self, rest: str) -> str:
        if not rest:
            return "(/save needs a file: /save talk.jsonl)"
        if not self.turns:
            return "(nothing to save)"
        rows = [[{"role": m.role, "content": m.content} for m in self.messages(speaker=0)]]
        text = "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows)
        try:
            with Path(rest).expanduser().open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            return f"({rest} cannot be written: {error.strerror})"
        return f"(added to {rest})"

    def _help(self, rest: str) -> str:
        return HELP


def system_of_rows(data: DataRecipe, *, rows: int = SEEN) -> str | None:
    """Returns the system prompt that the first training rows all have; None without one, or without the files."""
    from honed.data.example import Conversation, RowError
    from honed.data.prepare.options import options_from, reading_of
    from honed.data.read.formats import read_example
    from honed.data.read.sources import files_of, read_rows

    if data.sources or not (files := files_of(list(data.files))):
        return None
    reading, found = reading_of(options_from(data)), set()
    try:
        for source, row in islice(read_rows([str(file) for file in files]), rows):
            example = read_example(row, source, reading, format=data.format)
            first = example.messages[0] if isinstance(example, Conversation) else None
            found.add(first.content if first is not None and first.role == "system" else None)
    except (HonedError, RowError, OSError):  # moved or changed since
        return None
    return found.pop() if len(found) == 1 else None


def read_param(name: str, text: str) -> int | float | None:
    """Parses a setting, by the rules of the command line's options.

    Raises:
        ValueError: it is not a number, or outside its range.
    """
    import argparse

    from honed.cli.sampling import add_sampling

    if text == "own" and name not in ("temperature", "max_new_tokens", "seed"):
        return None
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    add_sampling(parser)
    try:
        value: Any = getattr(parser.parse_args([f"--{name.replace('_', '-')}={text}"]), name)
    except argparse.ArgumentError as error:
        raise ValueError(error.message) from None
    return value


_COMMANDS: dict[str, Callable[[Session, str], str]] = {
    "/reset": Session._reset,
    "/undo": Session._undo,
    "/system": Session._system,
    "/params": Session._params,
    "/save": Session._save,
    "/help": Session._help,
}
