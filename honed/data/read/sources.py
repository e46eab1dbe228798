"""Reads rows with their sources from files, folders, globs, the Hub and datasets in memory."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from glob import glob, has_magic
from importlib import resources
from pathlib import Path
from typing import Any

from honed.data.read.files import (
    COMPRESSED,
    KINDS,
    ROWS_AT_A_TIME,
    SourcedRow,
    UnreadRow,
    given,
    kind_of,
    numbered,
    read_file,
    unread_file,
    unread_part,
)
from honed.data.read.padding import padded_columns, without_padding
from honed.errors import DataError
from honed.hub import ask_for_dataset

STARTER = "starter"

# owner/name, owner/name:split, owner/name@config, owner/name@config:split
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<config>[\w.-]+))?(:(?P<split>\S+))?")

Reader = Callable[[], Iterator[SourcedRow]]


class SourcedRows:
    """Rows that already have their `Source`; each call of `read` starts from the first row."""

    def __init__(self, read: Reader) -> None:
        self.read = read

    def unread(self) -> Iterator[UnreadRow]:
        """The same rows, see `unread_rows`."""
        return map(given, self.read())


def starter_file(name: str) -> Path:
    """Path of a packaged file of the starter set: `train.jsonl` or `held_out.jsonl`."""
    return Path(str(resources.files("honed.data") / "starter" / name))


def read_rows(data: Any) -> Iterator[SourcedRow]:
    """Rows of any kind of data, each with its source. The caller's data is not changed.

    Args:
        data: anything that `shards` accepts.

    Raises:
        DataError: a file is missing, empty or malformed; names the file and the line.
    """
    for read in shards(data):
        yield from read()


def unread_rows(data: Any) -> Iterator[UnreadRow]:
    """Like `read_rows`, but where it saves work a row is parsed only when it is called, so that skipping is cheap."""
    files = files_of(data)
    if files is not None:
        for path in files:
            yield from unread_file(path)
    elif isinstance(data, SourcedRows):
        yield from data.unread()
    elif hasattr(data, "select") and hasattr(data, "features") and hasattr(data, "__len__"):
        rows, name = data.with_format(None) if hasattr(data, "with_format") else data, _name_of(data)
        for start in range(0, len(data), ROWS_AT_A_TIME):
            numbers = range(start, min(start + ROWS_AT_A_TIME, len(data)))
            yield from unread_part(partial(_selected, rows, numbers), len(numbers), name, start)
    else:
        yield from map(given, read_rows(data))


def shards(data: Any, *, streaming: bool = False) -> list[Reader]:
    """The parts of `data`, one per file; each can be read independently, from its start.

    Args:
        data: "starter"; a file, folder, glob or Hub id (`owner/name`, `owner/name@config:split`); a list of these; a
            `datasets` dataset, or a dict with one; any iterable of mappings; `SourcedRows`.
        streaming: read Hub datasets over the network instead of downloading them first.

    Raises:
        DataError: a name does not exist, or `data` does not hold rows.
    """
    if isinstance(data, SourcedRows):
        return [data.read]
    if isinstance(data, (str, os.PathLike)):
        return _named(str(data), streaming)
    if isinstance(data, Sequence) and data and all(isinstance(item, (str, os.PathLike)) for item in data):
        return [reader for item in data for reader in _named(str(item), streaming)]
    if type(data).__name__ == "DataFrame":  # iterates over names of columns
        raise DataError("A DataFrame is no list of rows.", fix="pandas: df.to_dict('records'); polars: df.to_dicts()")
    if isinstance(data, Iterable) and not isinstance(data, Mapping):
        return [lambda: numbered(_as_python(data), _name_of(data))]
    if isinstance(data, Mapping) and data and all(hasattr(split, "column_names") for split in data.values()):
        if len(data) == 1:
            return shards(next(iter(data.values())), streaming=streaming)
        names = ", ".join(map(repr, data))
        raise DataError(
            f"A {type(data).__name__} holds several splits: {names}.",
            fix=f"pass one of them, data[{next(iter(data))!r}]",
        )
    raise DataError(
        f"Cannot read rows from {type(data).__name__}.",
        fix="pass a file, a list of rows or a `datasets.Dataset`; of a DatasetDict, one split",
    )


def files_of(data: Any) -> list[Path] | None:
    """The files that `data` names, in reading order; None if it names anything else."""
    if isinstance(data, (str, os.PathLike)):
        return _paths(str(data))
    if isinstance(data, Sequence) and data and all(isinstance(item, (str, os.PathLike)) for item in data):
        found = [_paths(str(item)) for item in data]
        return None if None in found else [path for paths in found for path in paths or ()]
    return None


def _named(name: str, streaming: bool) -> list[Reader]:
    paths = _paths(name)
    if paths is not None:
        return [partial(read_file, path) for path in paths]
    if found := _HUB.fullmatch(name):
        return [lambda: _read_hub(name, found["id"], found["config"], found["split"] or "train", streaming)]
    raise DataError(
        f"No such file: {name}",
        fix=f"name a file ending in {', '.join(KINDS)} (or one of these and {' or '.join(COMPRESSED)}), a folder, "
        "a pattern such as data/*.jsonl, a Hub id (owner/name or owner/name:split) or 'starter'",
    )


def _paths(name: str) -> list[Path] | None:
    """The files of a name; None if it can only be a Hub id."""
    path = Path(name).expanduser()
    if name == STARTER:
        return [starter_file("train.jsonl")]
    if path.is_dir():
        return files_in(path)
    if path.exists():
        return [path]
    if has_magic(name) and not _HUB.fullmatch(name):  # a split may look like a glob: owner/name:train[:5%]
        return _matches(name, path)
    return [path] if kind_of(path) in KINDS else None  # reading it reports that it is missing


def _matches(name: str, path: Path) -> list[Path]:
    """The files that match a pattern, sorted."""
    matches = map(Path, glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    found = sorted(match for match in matches if match.is_file())
    if not found:
        raise DataError(f"No file matches {name}.", fix="check the pattern; relative ones start at the current folder")
    return found


def files_in(folder: Path) -> list[Path]:
    """The data files of a folder and its subfolders, sorted by path; the tables of a folder saved by `datasets`.

    Raises:
        DataError: there are no data files, or the folder holds several splits.
    """
    if (folder / "dataset_dict.json").is_file():
        names = json.loads((folder / "dataset_dict.json").read_text("utf-8")).get("splits", [])
        if len(names) == 1:
            return files_in(folder / names[0])
        raise DataError(
            f"{folder} is a DatasetDict with the splits {', '.join(names)}.",
            fix=f"name one of them, {folder / names[0]}",
        )
    if (folder / "state.json").is_file():
        state = json.loads((folder / "state.json").read_text("utf-8"))
        return [folder / file["filename"] for file in state.get("_data_files", [])]
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and kind_of(file) in KINDS
        and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    )
    if not found:
        raise DataError(
            f"{folder} is a folder that holds no data files.", fix=f"name one with files ending in {', '.join(KINDS)}"
        )
    return found


def _as_python(data: Any) -> Iterable[Any]:
    """Makes a `datasets` dataset return plain Python values, whatever its format; other data is unchanged."""
    if not (hasattr(data, "with_format") and hasattr(data, "features")):
        return data
    plain: Iterable[Any] = data.with_format(None)
    return _unpadded(plain if hasattr(plain, "__len__") else _whole_stream(plain), data)


def _unpadded(rows: Iterable[Any], data: Any) -> Iterable[Any]:
    """Rows of a `datasets` dataset without keys that Arrow adds; rows of a stream without features are unchanged."""
    schema = getattr(data.features, "arrow_schema", None)
    columns = padded_columns(schema) if schema is not None else []
    return (without_padding(row, columns) for row in rows) if columns else rows


def _whole_stream(data: Any) -> Iterator[Any]:
    """All rows of an `IterableDataset`, in any process.

    Iterating over it in a DataLoader worker yields only that worker's shards, but each reader of a `RowStream` needs
    all rows. `.iter` yields all of them.
    """
    for batch in data.iter(batch_size=1):
        yield {column: value for column, [value] in batch.items()}


def _selected(data: Any, numbers: range) -> list[Any]:
    return list(_unpadded(data.select(numbers), data))


def _name_of(data: Any) -> str:
    return str(getattr(getattr(data, "info", None), "dataset_name", None) or "row")


def _read_hub(name: str, hub_id: str, config: str | None, split: str, streaming: bool) -> Iterator[SourcedRow]:
    import datasets

    ask_for_dataset(hub_id)
    try:
        rows = datasets.load_dataset(hub_id, config, split=split, streaming=streaming)
    except Exception as error:  # the Hub's client raises dozens of types; one line is enough
        raise DataError(
            f"The dataset {name!r} is neither a file here nor loadable from the Hub: {error}",
            fix="check the name, the split (owner/name:split) and the network, or pass a local file",
        ) from None
    return numbered(_as_python(rows), name)
