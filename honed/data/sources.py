"""Files, the packaged starter set and Hub data sets as rows that know where they came from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from honed.data.example import Source
from honed.errors import DataError

STARTER = "starter"
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".arrow")

SourcedRow = tuple[Source, Any]


def starter_file(name: str) -> Path:
    """Path of a packaged file of the starter set: `train.jsonl` or `held_out.jsonl`."""
    return Path(str(resources.files("honed.data") / "starter" / name))


def read_rows(data: Any) -> Iterator[SourcedRow]:
    """Rows of anything that holds rows, each with its source. Nothing that the caller passed is changed.

    Args:
        data: "starter"; a path or Hub id; a `datasets` data set; any iterable of mappings; or a list of the former.

    Raises:
        DataError: a file is missing, empty or garbled; names the file and the line.
    """
    if isinstance(data, (str, os.PathLike)):
        yield from _read_named(str(data))
    elif isinstance(data, Sequence) and data and all(isinstance(item, (str, os.PathLike)) for item in data):
        for item in data:
            yield from _read_named(str(item))
    elif isinstance(data, Iterable) and not isinstance(data, Mapping):
        name = getattr(getattr(data, "info", None), "dataset_name", None)
        yield from _numbered(data, str(name or "row"))
    else:
        raise DataError(
            f"Cannot read rows from {type(data).__name__}.",
            fix="pass a file, a list of rows or a `datasets.Dataset`; of a DatasetDict, one split",
        )


def _read_named(name: str) -> Iterator[SourcedRow]:
    if name == STARTER:
        return _read_file(starter_file("train.jsonl"))
    path = Path(name).expanduser()
    if path.exists() or path.suffix in SUFFIXES:
        return _read_file(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _read_hub(name)
    raise DataError(
        f"No such file: {name}", fix=f"name a file ending in {', '.join(SUFFIXES)}, a Hub id (owner/name) or 'starter'"
    )


def _read_file(path: Path) -> Iterator[SourcedRow]:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}.", fix="check the path; relative paths start at the current folder")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.", fix="it should hold one JSON object per line")
    if path.suffix in {".parquet", ".csv", ".arrow"}:
        return _numbered(_table_rows(path), str(path))
    if path.suffix == ".json":
        return _read_json(path)
    return _read_json_lines(path, _decode(path))


def _read_json(path: Path) -> Iterator[SourcedRow]:
    """A JSON list of rows; files that hold JSON lines under this name are read as such."""
    text = _decode(path)
    if not text.lstrip().startswith("["):
        yield from _read_json_lines(path, text)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}", fix="mend the file at that place") from None
    if not rows:
        raise DataError(f"{path} holds an empty list.", fix="it should hold at least one row")
    yield from _numbered(rows, str(path))


def _read_json_lines(path: Path, text: str) -> Iterator[SourcedRow]:
    found = 0
    # not splitlines(): that also cuts at U+2028 and its like, which JSON allows inside strings
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: this line is not JSON ({error}): {line.strip()[:80]!r}",
                fix="each line must be one JSON object",
            ) from None
        found += 1
        yield Source(file=str(path), row=number), row
    if not found:
        raise DataError(f"{path} holds no rows.", fix="it should hold one JSON object per line")


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text (byte {error.start}).",
            fix="save the file as UTF-8; a compressed or binary file must be unpacked first",
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", fix="check its permissions") from None


def _table_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".parquet":
            return parquet.read_table(path).to_pylist()
        if path.suffix == ".csv":
            # every column is text, else an answer "1" or "true" would not stay one; and answers have several lines
            parse = csv.ParseOptions(newlines_in_values=True)
            with csv.open_csv(path, parse_options=parse) as first:
                types = dict.fromkeys(first.schema.names, pa.string())
            return csv.read_csv(
                path, parse_options=parse, convert_options=csv.ConvertOptions(column_types=types)
            ).to_pylist()
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_stream(file).read_all().to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a readable {path.suffix[1:]} file: {error}", fix="check or re-make the file"
        ) from None


def _read_hub(name: str) -> Iterator[SourcedRow]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split="train")
    except Exception as error:  # the Hub's client raises dozens of kinds; the user needs only one line
        raise DataError(
            f"The data set {name!r} is neither a file here nor loadable from the Hub: {error}",
            fix="check the name and the network, or pass a local file",
        ) from None
    return _numbered(rows, name)


def _numbered(rows: Iterable[Any], name: str) -> Iterator[SourcedRow]:
    for number, row in enumerate(rows, start=1):
        yield Source(file=name, row=number), row
