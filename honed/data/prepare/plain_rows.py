"""Reads rows that contain only texts to a shape and these texts, without an object per message.

`formats.read_example` gives the same result for these rows; rows that it might refuse or treat specially are not plain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from honed.data.example import Conversation, Document, Example, Message, PromptCompletion, Source
from honed.data.prepare.options import PrepareOptions, reading_of
from honed.data.read.formats import BESIDE_MESSAGES, ROW_KEYS, format_of_keys

# The roles of a conversation, or the name of a text format.
Shape = tuple[str, ...] | str
Plain = tuple[Shape, tuple[str, ...]]
_Read = Callable[[dict[Any, Any]], "Plain | None"]
_READ = {*ROW_KEYS, *BESIDE_MESSAGES}  # the keys that formats read
_MOST_SETS_OF_KEYS = 1024


class PlainRows:
    """Recognises plain rows."""

    def __init__(self, options: PrepareOptions) -> None:
        self._options = options
        self._text_column = reading_of(options).text_column
        self._system = (options.system,) if options.system else ()
        self._readers: dict[tuple[Any, ...], _Read | None] = {}

    def __call__(self, row: Any) -> Plain | None:
        """The row's shape and texts; None for any other row."""
        if type(row) is not dict:
            return None
        keys = tuple(row)
        if keys not in self._readers:
            if len(self._readers) >= _MOST_SETS_OF_KEYS:
                self._readers.clear()
            self._readers[keys] = self._reader(keys)
        read = self._readers[keys]
        return read(row) if read else None

    def _reader(self, keys: tuple[Any, ...]) -> _Read | None:
        options = self._options
        if options.columns:
            return None
        name = (format_of_keys(keys) or "text") if options.format == "auto" else options.format
        found = {key for key in keys if key in _READ or key == self._text_column}
        readers: dict[str, tuple[set[str], _Read]] = {
            "messages": ({"messages"}, self._messages),
            "prompt_completion": ({"prompt", "completion"}, _prompt_completion),
            "text": ({self._text_column}, self._text),
        }
        needed, read = readers.get(name, (set(), None))
        return read if found == needed else None

    def _messages(self, row: dict[Any, Any]) -> Plain | None:
        turns = row["messages"]
        if type(turns) is not list:
            return None
        roles, contents = [], []
        for turn in turns:
            if type(turn) is not dict or len(turn) != 2:
                return None
            role, content = turn.get("role"), turn.get("content")
            if type(role) is not str or type(content) is not str or not is_unicode(content):
                return None
            if role == "assistant" and is_blank(content):
                return None
            roles.append(role)
            contents.append(content)
        if self._system and roles and roles[0] != "system":
            return ("system", *roles), (*self._system, *contents)
        return tuple(roles), tuple(contents)

    def _text(self, row: dict[Any, Any]) -> Plain | None:
        text = row[self._text_column]
        return ("text", (text,)) if type(text) is str and not is_blank(text) and is_unicode(text) else None


def example_of(shape: Shape, contents: tuple[str, ...], source: Source) -> Example:
    """Converts a shape and texts to an example."""
    if shape == "text":
        return Document(text=contents[0], source=source)
    if shape == "prompt_completion":
        return PromptCompletion(prompt=contents[0], completion=contents[1], source=source)
    messages = (Message(role=role, content=content) for role, content in zip(shape, contents, strict=True))
    return Conversation(messages=tuple(messages), source=source)


def is_blank(text: str) -> bool:
    """`not text.strip()` without a copy."""
    return not text or text.isspace()


def is_unicode(text: str) -> bool:
    """False if the text contains an unpaired surrogate."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _prompt_completion(row: dict[Any, Any]) -> Plain | None:
    prompt, completion = row["prompt"], row["completion"]
    if type(prompt) is not str or type(completion) is not str or is_blank(completion):
        return None
    return ("prompt_completion", (prompt, completion)) if is_unicode(prompt) and is_unicode(completion) else None
