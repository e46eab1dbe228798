"""What to say of a row that has no known format: what is null, or what its columns probably are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honed.data.example import RowError

QUESTIONS = ("prompt", "question", "query", "input", "instruction", "problem")
ANSWERS = ("completion", "answer", "response", "output", "solution")


def unknown_format(row: Mapping[Any, Any], formats: Mapping[str, tuple[frozenset[str], ...]]) -> RowError:
    """The error for a row that no format fits.

    Args:
        row: under the names that formats know.
        formats: name of a format -> the sets of keys by which it is recognised.
    """
    seen = f"keys seen: {', '.join(map(str, row)) or 'none'}."
    found = {key for key, value in row.items() if value is not None}
    for sets in formats.values():
        for keys in sets:
            if keys <= row.keys():
                return RowError(f"`{min(keys - found)}` is null", seen)
    if guess := _guess(row, found):
        return RowError("unknown format", f"{seen} {guess}")
    return RowError("unknown format", f"{seen} Formats known: {_listed(formats)}")


def _listed(formats: Mapping[str, tuple[frozenset[str], ...]]) -> str:
    return "; ".join(f"{name} ({' or '.join('+'.join(sorted(k)) for k in sets)})" for name, sets in formats.items())


def _guess(row: Mapping[Any, Any], found: set[Any]) -> str:
    """What to set where the columns' names tell what they hold; "" where they do not."""
    question = next((key for key in QUESTIONS if key in found), None)
    if {"chosen", "rejected"} <= found:
        return f"This is preference data, and honed does SFT. To train what was chosen: {_chosen(row, question)}"
    answer = next((key for key in ANSWERS if key in found and key != question), None)
    if question is None or answer is None:
        return ""
    plain, chat = _option(prompt=question, completion=answer), _option(instruction=question, output=answer)
    return f"As plain text: {plain}. As a conversation, under the chat template: {chat}"


def _chosen(row: Mapping[Any, Any], question: str | None) -> str:
    if not isinstance(row["chosen"], str):
        prompt = row.get("prompt")
        apart = isinstance(prompt, list)  # else `chosen` holds the question as well
        return _option(completion="chosen") if apart else _option(messages="chosen")
    return _option(prompt=question, completion="chosen") if question else _option(text="chosen")


def _option(**columns: str) -> str:
    """`data.columns` for these names, as the command line and as Python take it."""
    renamed = {key: column for key, column in columns.items() if key != column}
    written = ", ".join(f"{key}: {column}" for key, column in renamed.items())
    return f"data.columns='{{{written}}}' (from Python: columns={renamed})"
