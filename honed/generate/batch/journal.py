"""The answers of a batch as they come, one JSON line each, so that an interrupted batch can be resumed.

The first line holds the settings; a journal with other settings is refused. An incomplete last line, left by a killed
process, is removed and its answer generated again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from honed.errors import RunError

Key = tuple[int, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One answer: its row (number, and digest of the prompt), its number within the row, its text and how it ended."""

    row: int
    digest: str
    sample: int
    text: str
    reason: str
    tokens: int

    @property
    def key(self) -> Key:
        """Identifies the answer: row, digest of the prompt, number."""
        return self.row, self.digest, self.sample


class Journal:
    """The file of a batch's answers.

    Args:
        path: created if missing.
        settings: what the answers depend on besides their prompts; JSON values.

    Raises:
        RunError: the file holds answers made with other settings, or is not a journal.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings))
        self.found: dict[Key, Answered] = {}
        self.repaired = self._repair()
        if path.exists() and path.stat().st_size:
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_line({"settings": self._settings}), encoding="utf-8")

    @contextmanager
    def adding(self) -> Iterator[Any]:
        """Yields a function that appends an answer and flushes the line to the operating system."""
        with self.path.open("a", encoding="utf-8") as file:
            yield lambda answered: self._add(file, answered)
            os.fsync(file.fileno())

    def _add(self, file: IO[str], answered: Answered) -> None:
        file.write(_line(asdict(answered)))
        file.flush()
        self.found[answered.key] = answered

    def _repair(self) -> bool:
        """Removes an incomplete last line; returns whether there was one."""
        if not self.path.exists():
            return False
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole == len(content):
            return False
        with self.path.open("r+b") as file:
            file.truncate(whole)
        return True

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        try:
            settings = json.loads(lines[0])["settings"]
            answers = [Answered(**json.loads(line)) for line in lines[1:]]
        except (ValueError, TypeError, KeyError):
            raise RunError(f"{self.path} is not a journal of answers.", fix="name another --out") from None
        other = [name for name, value in self._settings.items() if settings.get(name) != value]
        if other:
            name = other[0]
            raise RunError(
                f"{self.path} holds answers made with {name} = {settings.get(name)!r}, now it is"
                f" {self._settings[name]!r}.",
                fix="name another --out, or delete that file to start over",
            )
        self.found = {answered.key: answered for answered in answers}


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"
