"""Reads a file as rows with their line or row numbers, piece by piece, so that memory does not grow with the file.

.jsonl .ndjson .json   one object per line, or (.json) one list; also .gz and .zst
.parquet .arrow .csv .tsv
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

from honed.data.example import RowError, Source
from honed.data.read.padding import padded_columns, without_padding
from honed.errors import DataError

SourcedRow = tuple[Source, Any]
UnreadRow = Callable[[], SourcedRow]

COMPRESSED = (".gz", ".zst")
TABLES = (".parquet", ".arrow", ".csv", ".tsv")
KINDS = (".jsonl", ".ndjson", ".json", *TABLES)
ROWS_AT_A_TIME = 1000
_CSV_BLOCK = 16 << 20  # bytes; the longest row of a CSV file
_WIDE = {  # longer marks first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
# Texts without a mark begin with ASCII, a bracket or a column's name: x stands for any byte except zero.
_ZEROS = {b"x\0\0\0": "UTF-32LE", b"\0\0\0x": "UTF-32BE", b"x\0x\0": "UTF-16LE", b"\0x\0x": "UTF-16BE"}
_LFS = b"version https://git-lfs.github.com/spec/"
_ZERO_OR_NOT = bytes([0, *[ord("x")] * 255])


def kind_of(path: Path) -> str:
    """Returns the suffix of the contents, such as `.jsonl` for `a.jsonl.gz`; "" if there is none."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def read_file(path: Path) -> Iterator[SourcedRow]:
    """Yields the rows of a file, with 1-based line numbers (JSON Lines) or row numbers (other formats).

    A line that cannot be parsed is replaced by its RowError, so that it counts as an unusable row.

    Raises:
        DataError: the file is missing, empty, or cannot be read at all; names the file and the line, if any.
    """
    return (row() for row in unread_file(path))


def unread_file(path: Path) -> Iterator[UnreadRow]:
    """Yields the same rows as functions that parse them, so that skipping a row is cheap.

    Raises:
        DataError: see `read_file`; a problem in a single row is raised when its function is called.
    """
    _refuse_unreadable(path)
    if kind_of(path) in TABLES:
        return _some(_read_table(path), path)
    first = _first_line(path)
    if kind_of(path) not in KINDS and not first.startswith((b"{", b"[")):
        raise DataError(
            f"{path} is not a file of rows: it does not hold JSON, and its name does not say what else.",
            fix=f"unpack or convert it to one of {', '.join(KINDS)}; plain text to lines of "
            '{"text": "..."}, one for each document',
        )
    if first.startswith(b"["):
        try:
            return map(given, _read_json_list(path))
        except DataError:
            if kind_of(path) == ".json" or first == b"[":  # otherwise lines may themselves be lists
                raise
    return _some(_read_json_lines(path), path)


def _refuse_unreadable(path: Path) -> None:
    """Raises DataError if the file is missing, empty, unreadable, a pipe or a pointer of Git LFS."""
    if not path.exists():
        raise DataError(f"{path} does not exist.", fix="check the path; relative paths start at the current folder")
    if not path.is_file():
        raise DataError(f"{path} is a pipe or a device.", fix="write it into a file: rows are read more than once")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.", fix="it should hold one JSON object per line")
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        raise _broken(path, error) from None
    if start == _LFS:
        fix = "fetch them: git lfs pull, in that repository"
        raise DataError(f"{path} is a pointer of Git LFS, not the data.", fix=fix)


def json_texts(path: Path) -> Iterator[tuple[int | None, bytes]]:
    """Yields the non-empty lines of a JSON file with their numbers; for a single list of rows, all of it with None.

    Raises:
        DataError: it cannot be read.
    """
    first = _first_line(path)
    if first == b"[" or (first.startswith(b"[") and kind_of(path) == ".json"):
        yield None, b"".join(_lines(path))
        return
    yield from ((number, line) for number, line in enumerate(_lines(path), start=1) if line.strip())


def _first_line(path: Path) -> bytes:
    return next((line for line in _lines(path) if line.strip()), b"").strip()


def given(row: SourcedRow) -> UnreadRow:
    """Wraps a row that is already parsed."""
    return lambda: row


def _some(rows: Iterator[UnreadRow], path: Path) -> Iterator[UnreadRow]:
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} holds no rows.", fix="it should hold at least one row")
    yield first
    yield from rows


def _read_json_lines(path: Path) -> Iterator[UnreadRow]:
    name, offset, first = str(path), 0, True
    # Bytes are split only at \n; text would also be split at U+2028 and the like, which JSON allows in strings.
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield partial(_parsed, line, name, number, offset, first)
            first = False
        offset += len(line)


def _lines(path: Path) -> Iterator[bytes]:
    with _open(path) as file:
        try:
            first = file.readline()
            _refuse_wide(path, first)
            yield first.removeprefix(codecs.BOM_UTF8)
            yield from file
        except (OSError, EOFError, zlib.error) as error:
            raise _broken(path, error) from None


def _refuse_wide(path: Path, start: bytes) -> None:
    """Raises DataError if the file's first bytes show an encoding other than UTF-8, by its mark or its zeros."""
    for mark, encoding in (*_WIDE.items(), *_ZEROS.items()):
        if start.startswith(mark) or start[: len(mark)].translate(_ZERO_OR_NOT) == mark:
            plain = path.name.removesuffix(path.suffix) if path.suffix.lower() in COMPRESSED else path.name
            raise DataError(
                f"{path} is {encoding} text.",
                fix=f"convert it{' (unpacked)' if plain != path.name else ''}: "
                f"iconv -f {encoding} -t UTF-8 {plain} > utf8_{plain}",
            )


_DECODER = json.JSONDecoder(strict=False)  # `json.loads` would create one for every line


def _parsed(line: bytes, name: str, number: int, offset: int, first: bool) -> SourcedRow:
    source = Source(file=name, row=number)
    try:
        return source, _parse(line)
    except UnicodeDecodeError as error:
        if first:  # not a single bad line: another encoding, or not text at all
            raise _not_utf8(str(source), offset + error.start) from None
        return source, RowError("not UTF-8 text", f"byte {offset + error.start} of the file")


def _parse(line: bytes) -> Any:
    """Parses a line; returns a RowError if it is not JSON."""
    try:
        return _DECODER.decode(line.decode())  # control characters in strings are accepted as text
    except UnicodeDecodeError:  # also a ValueError
        raise
    except (ValueError, RecursionError) as error:
        why = str(error)
        if line.strip() in (b"{", b"["):
            return RowError("not JSON", "each object must be on a line of its own: jq -c . FILE writes them so")
        if isinstance(error, json.JSONDecodeError):
            why = f"{error.msg.removesuffix(' at')} (character {error.pos + 1})"
        start = line[:400].decode(errors="replace").strip()[:80]
        return RowError("not JSON", f"{why}: {start!r}")


def _read_json_list(path: Path) -> Iterator[SourcedRow]:
    """Yields the rows of a JSON list, parsed as a whole: unlike lines, a list cannot be split."""
    content = b"".join(_lines(path))
    try:
        rows = json.loads(content.decode(), strict=False)
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{path}:{content[: error.start].count(10) + 1}", error.start) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}", fix="fix the file at that place") from None
    if not rows:
        raise DataError(f"{path} holds an empty list.", fix="it should hold at least one row")
    return numbered(rows, str(path))


def _open(path: Path) -> IO[bytes]:
    """Opens the file's bytes, decompressed on the fly."""
    try:
        if path.suffix.lower() == ".gz":
            return io.BufferedReader(gzip.open(path))
        if path.suffix.lower() == ".zst":
            import pyarrow as pa

            return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 1 << 20)
        return path.open("rb", buffering=1 << 20)
    except OSError as error:
        raise _broken(path, error) from None


def _read_table(path: Path) -> Iterator[UnreadRow]:
    read = {".parquet": _parquet, ".arrow": _arrow}.get(kind_of(path), _csv)
    before = 0
    with _table_errors(path):
        for batch in read(path):
            _refuse_columns_of_one_name(batch.schema.names, path)
            for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                part = batch.slice(start, ROWS_AT_A_TIME)
                yield from unread_part(partial(_to_rows, part, path), part.num_rows, str(path), before)
                before += part.num_rows


def _refuse_columns_of_one_name(names: list[str], path: Path) -> None:
    """Raises DataError if two columns have the same name: a row, which is a mapping, has room for only one."""
    if twice := next((name for name in names if name and names.count(name) > 1), ""):
        raise DataError(f"{path} has two columns named {twice!r}.", fix="rename one of them, or take it out")


def _to_rows(batch: Any, path: Path) -> list[Any]:
    with _table_errors(path):
        rows: list[Any] = batch.to_pylist()
    columns = padded_columns(batch.schema)
    return [without_padding(row, columns) for row in rows] if columns else rows


def unread_part(read: Callable[[], list[Any]], count: int, name: str, before: int) -> Iterator[UnreadRow]:
    """Yields functions for the `count` rows that `read` returns, numbered from `before` + 1; calling one reads all."""
    part = cache(read)
    return (partial(_row_of, part, number, Source(file=name, row=before + number + 1)) for number in range(count))


def _row_of(part: Callable[[], list[Any]], number: int, source: Source) -> SourcedRow:
    return source, part()[number]


@contextmanager
def _table_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        with suppress(OSError, EOFError, zlib.error), _open(path) as file:
            _refuse_wide(path, file.read(4))
        fix = next((own for said, own in _MENDS.items() if said in str(error)), "check or re-make the file")
        raise DataError(f"{path}: not a readable {kind_of(path)[1:]} file: {error}", fix=fix) from None


_MENDS = {  # words in Arrow's message -> what to do
    "Expected 1 columns": "separate columns by commas (.csv) or tabs (.tsv): the first line holds only one column",
    "invalid UTF8": "save the file as UTF-8; from Western European Excel: iconv -f WINDOWS-1252 -t UTF-8",
    "columns, got": "put cells that hold commas, quotes or line ends in double quotes, as Python's csv module does",
}


def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(str(path)) as file:
        for group in range(file.num_row_groups):
            yield from file.iter_batches(batch_size=ROWS_AT_A_TIME, row_groups=[group])


def _arrow(path: Path) -> Iterator[Any]:
    """Opens both of Arrow's formats: streams (which `datasets` writes) and files (Feather)."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(file)
            yield from (reader.get_batch(n) for n in range(reader.num_record_batches))
        else:
            file.seek(0)
            yield from pa.ipc.open_stream(file)


def _csv(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import csv

    options = {
        "read_options": csv.ReadOptions(block_size=_CSV_BLOCK),
        # answers may have several lines
        "parse_options": csv.ParseOptions(newlines_in_values=True, delimiter="\t" if kind_of(path) == ".tsv" else ","),
    }
    with _open(path) as file, csv.open_csv(file, **options) as first:
        # Every column is text, so that an answer "1" or "true" is kept as it is.
        types = dict.fromkeys(first.schema.names, pa.string())
    convert = csv.ConvertOptions(column_types=types)
    with _open(path) as file, csv.open_csv(file, convert_options=convert, **options) as reader:
        yield from reader


def numbered(rows: Iterable[Any], name: str) -> Iterator[SourcedRow]:
    """Yields rows with their numbers, from 1."""
    for number, row in enumerate(rows, start=1):
        yield Source(file=name, row=number), row


def _not_utf8(place: str, byte: int) -> DataError:
    return DataError(
        f"{place}: not UTF-8 text (byte {byte}).",
        fix="save the file as UTF-8; a compressed file must end in .gz or .zst, a binary one must be unpacked first",
    )


def _broken(path: Path, error: BaseException) -> DataError:
    packed = path.suffix.lower() in COMPRESSED
    what = getattr(error, "strerror", None) or error
    return DataError(
        f"{path} cannot be read: {what}.", fix="re-make the compressed file" if packed else "check its permissions"
    )
