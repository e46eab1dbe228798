"""Errors for rows without a known format: which columns are null, or what they probably contain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honed.data.example import RowError
from honed.quantities import counted

QUESTIONS = ("prompt", "question", "query", "input", "instruction", "problem")
ROWS = ("data", "rows", "train", "examples", "samples", "records", "items", "dataset")  # keys of lists of rows
ANSWERS = ("completion", "answer", "response", "output", "solution")


def unknown_format(row: Mapping[Any, Any], formats: Mapping[str, tuple[frozenset[str], ...]]) -> RowError:
    """Returns the error for a row that matches no format.

    Args:
        row: the row, with the names that formats expect.
        formats: name of a format -> the sets of keys that identify it.
    """
    seen = f"keys seen: {', '.join(map(_shown, row)) or 'none'}."
    found = {key for key, value in row.items() if value is not None}
    for sets in formats.values():
        for keys in sets:
            if keys <= row.keys():
                return RowError(f"`{min(keys - found)}` is null", seen)
    if guess := _misspelt(found, formats) or _export(row) or _misread(row) or _guess(row, found):
        return RowError("unknown format", f"{seen} {guess}")
    return RowError("unknown format", f"{seen} Formats known: {_listed(formats)}")


def _listed(formats: Mapping[str, tuple[frozenset[str], ...]]) -> str:
    return "; ".join(f"{name} ({' or '.join('+'.join(sorted(k)) for k in sets)})" for name, sets in formats.items())


def _shown(key: Any) -> str:
    return repr(key) if str(key) != str(key).strip() else str(key)


def _misread(row: Mapping[Any, Any]) -> str:
    """Returns the fix if the file does not appear to be a list of rows; otherwise ""."""
    lists = [key for key, value in row.items() if _holds_objects(value)]
    if len(lists) == 1 and (len(row) == 1 or lists[0] in ROWS):
        [key] = lists
        held = counted(len(row[key]), "object")
        return f"`{key}` holds {held}: if these are the rows, write them as a list, or one a line."
    if len(row) != 1:
        return ""
    [(key, value)] = row.items()
    sign = next((sign for sign in ";\t|" if sign in str(key)), "")
    return f"This is one column; separate them by commas, not {sign!r}." if sign and isinstance(value, str) else ""


def _holds_objects(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _export(row: Mapping[Any, Any]) -> str:
    """Returns the fix for chats exported from assistants' web sites; "" for other rows."""
    if isinstance(row.get("mapping"), Mapping):
        return (
            "This is a chat of ChatGPT's export, a tree: from `current_node` follow `parent` to the root, and write "
            "`author.role` and `content.parts` of these nodes as messages, the root's first."
        )
    if _holds_objects(row.get("chat_messages")):
        return f"This is a chat of Claude's export: {_option(messages='chat_messages', role='sender', content='text')}"
    return ""


def _misspelt(found: set[Any], formats: Mapping[str, tuple[frozenset[str], ...]]) -> str:
    """Returns the fix if names differ from a format's only in capitals or white space; otherwise ""."""
    plain = {str(key).strip().lower(): str(key) for key in found}
    for sets in formats.values():
        if fitting := next((keys for keys in sets if keys <= plain.keys()), None):
            more = {"input", "system", "tools"} & plain.keys()
            return f"The names of its columns: {_option(**{key: plain[key] for key in sorted(fitting | more)})}"
    return ""


def _guess(row: Mapping[Any, Any], found: set[Any]) -> str:
    """Returns the option to set if the columns' names indicate what they contain; otherwise ""."""
    question = next((key for key in QUESTIONS if key in found), None)
    if {"chosen", "rejected"} <= found:
        return f"This is preference data, and honed does SFT. To train what was chosen: {_chosen(row, question)}"
    answer = next((key for key in ANSWERS if key in found and key != question), None)
    if question is None or answer is None:
        return ""
    plain, chat = _option(prompt=question, completion=answer), _option(instruction=question, output=answer)
    if isinstance(row[answer], (list, tuple)):  # messages, or items of OpenAI's Responses API
        system = {"system": "instructions"} if "instructions" in found else {}
        return f"As messages: {_option(prompt=question, completion=answer, **system)}"
    return f"As plain text: {plain}. As a conversation, under the chat template: {chat}"


def _chosen(row: Mapping[Any, Any], question: str | None) -> str:
    if not isinstance(row["chosen"], str):
        prompt = row.get("prompt")
        apart = isinstance(prompt, list)  # otherwise `chosen` also contains the question
        return _option(completion="chosen") if apart else _option(messages="chosen")
    return _option(prompt=question, completion="chosen") if question else _option(text="chosen")


def _option(**columns: str) -> str:
    """Returns `data.columns` for these names, for the command line and for Python."""
    renamed = {key: column for key, column in columns.items() if key != column}
    written = ", ".join(
        f"{key}: {column if column.isidentifier() else repr(column)}" for key, column in renamed.items()
    )
    quote = '"' if "'" in written else "'"
    return f"data.columns={quote}{{{written}}}{quote} (from Python: columns={renamed})"
