"""Other trainers' datasets as the `data` section of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from honed.cli.new.translate import Draft

TALKS = ("messages", "conversations")  # names of lists of messages that need no `data.columns`
ROLES = ({"role": "role", "content": "content"}, {"role": "from", "content": "value"})  # keys that need none
ONE_OF_ALL = "rename the columns in the files, or train on one dataset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Another trainer's dataset: the keys of a source in `data.sources`, and what only all of `data` can specify."""

    files: str | list[str]
    name: str = ""
    cap: int | None = None
    weight: float | None = None
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    text_field: str | None = None
    images: bool = False


def hub_id(name: str, config: Any = None, split: Any = None) -> str:
    """Returns `owner/name@config:split` for `data.files`, without the default parts."""
    return name + (f"@{config}" if config else "") + (f":{split}" if split and split != "train" else "")


def talk_columns(messages: str, role: str, content: str) -> dict[str, str]:
    """Returns `data.columns` for rows with a list of messages, without names that are recognised anyway."""
    columns = {} if messages in TALKS else {"messages": messages}
    return columns if {"role": role, "content": content} in ROLES else {**columns, "role": role, "content": content}


def named(columns: Mapping[str, Any]) -> dict[str, str]:
    """Returns the columns that have a different name."""
    return {key: column for key, column in columns.items() if column and key != column}


def put_origins(draft: Draft, origins: Sequence[Origin], *, key: str) -> None:
    """Writes `data.files` if that suffices, else `data.sources`, and what all datasets have in common.

    Args:
        origins: one or more datasets.
        key: their key that names the datasets, for refusals.
    """
    sources = [_source(origin) for origin in origins]
    formats = {origin.format for origin in origins}
    if all(source.keys() <= {"files", "name", "format"} for source in sources) and len(formats) == 1:
        files = [file for origin in origins for file in _listed(origin.files)]
        draft.put("data.files", files[0] if len(files) == 1 else files)
        if formats != {None}:
            draft.put("data.format", formats.pop())
    else:
        draft.put("data.sources", sources)
    for name in ("columns", "text_field"):
        first, *others = [getattr(origin, name) for origin in origins]
        if any(other != first for other in others):
            draft.refuse(key, f"data.{name} is one for all datasets, and these have several", ONE_OF_ALL)
        elif first:
            draft.put(f"data.{name}", dict(first) if name == "columns" else first)


def put_held_out(
    draft: Draft, origins: Sequence[Origin], training: Sequence[Origin], *, key: str, comment: str = ""
) -> None:
    """Writes `data.held_out`, a single file or dataset that is read like the training data."""
    files = [file for origin in origins for file in _listed(origin.files)]
    if len(files) > 1:
        draft.refuse(key, "data.held_out is one file", "put them into one file")
    elif any(origin.columns != training[0].columns for origin in origins):
        draft.refuse(key, "the rows to evaluate on have other columns than those to train on", ONE_OF_ALL)
    else:
        draft.put("data.held_out", files[0], comment)


def _source(origin: Origin) -> dict[str, Any]:
    keys = ("files", "name", "weight", "cap", "format")
    return {key: value for key in keys if (value := getattr(origin, key)) not in (None, "")}


def _listed(files: str | list[str]) -> list[str]:
    return [files] if isinstance(files, str) else files
