"""Caches prepared data on disk: a second run with the same rows, tokenizer, template and options opens it at once.

    <cache>/prepared/<key>/   input_ids.npy  weights.npy  starts.npy     the documents, memory-mapped when read
                              rows.npy  row_starts.npy                   which documents share a row
                              prepared.json                              the ledger and the stop ids

The key is a hash of everything that affects the result. What cannot be hashed (rows in memory, a formatting function,
a tokenizer that is Python code) is prepared anew each time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from honed.cache import cache_errors, cache_folder, keep, manifest_fault
from honed.data.batch.table import PackedRows, TokenTable
from honed.data.encode.tokenizer_state import NoStateError, all_of, states_kept
from honed.data.ledger import Ledger
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import Prepared, prepare
from honed.data.read.sources import files_of
from honed.quantities import counted

KIND = "prepared"
LAYOUT = 1
NAMED = 3  # files
_BLOCK = 1 << 20


@states_kept()
def prepare_cached(
    data: Any,
    tokenizer: Any,
    options: PrepareOptions,
    *,
    formatting_func: Callable[[Any], Any] | None = None,
    desc: str = "Preparing data",
    workers: int = 1,
    root: Path | None = None,
) -> Prepared:
    """Returns the result of `prepare`, cached for the same input; see there for arguments and errors.

    Args:
        root: the cache; None for honed's own.
    """

    def make() -> Prepared:
        return prepare(data, tokenizer, options, formatting_func=formatting_func, desc=desc, workers=workers)

    try:
        key = cache_key(data, tokenizer, options) if formatting_func is None else None
    except NoStateError as error:
        return _noted(make(), f"prepared data is not kept on disk: {error}")
    if key is None:
        return make()
    folder = cache_folder(KIND, root=root) / key
    if manifest_fault(folder, source_sha256=key, converter=LAYOUT) is None:
        return load(folder)
    prepared = make()
    with cache_errors(folder):
        about = _about(data, tokenizer, prepared)
        keep(folder, partial(save, prepared), source_sha256=key, converter=LAYOUT, about=about)
    return prepared


def _noted(prepared: Prepared, note: str) -> Prepared:
    prepared.ledger.notes.append(note)
    return prepared


def _about(data: Any, tokenizer: Any, prepared: Prepared) -> str:
    """Describes prepared data for `honed cache`: "a.jsonl, b.jsonl for Qwen3-0.6B: 200 rows, 22,765 tokens"."""
    names = [path.name for path in files_of(data) or ()] or [str(getattr(data, "_fingerprint", "rows"))]
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    model = Path(str(getattr(tokenizer, "name_or_path", ""))).name
    sizes = f"{counted(prepared.ledger.rows_in, 'row')}, {counted(prepared.ledger.tokens, 'token')}"
    return f"{', '.join(names[:NAMED])}{more}{f' for {model}' if model else ''}: {sizes}"


def cache_key(data: Any, tokenizer: Any, options: PrepareOptions) -> str | None:
    """Returns a hash of rows, tokenizer, template, options and code; None if the rows cannot be hashed.

    Raises:
        NoStateError: the tokenizer cannot be hashed.
    """
    rows = _rows_state(data)
    if rows is None:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for state in (rows, _tokenizer_state(tokenizer), _options_state(options), _code_state()):
        for part in state:
            digest.update(part)
        digest.update(b"\0|\0")  # so that the borders between them matter
    return digest.hexdigest()


def save(prepared: Prepared, folder: Path) -> None:
    """Writes what `load` reads."""
    folder.mkdir()
    table, rows = prepared.rows.table, prepared.rows.rows
    arrays = {
        "input_ids": table.input_ids,
        "weights": table.weights,
        "starts": table.starts,
        "rows": np.fromiter((d for row in rows for d in row), dtype=np.int64),
        "row_starts": np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    record = {"ledger": prepared.ledger.as_dict(), "stop_ids": list(prepared.stop_ids)}
    (folder / "prepared.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")


def load(folder: Path) -> Prepared:
    """Reads what `save` wrote; arrays stay on disk until they are accessed."""
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    record = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    table = TokenTable.of(arrays["input_ids"], arrays["weights"], arrays["starts"])
    rows = _StoredRows(arrays["rows"], arrays["row_starts"])
    return Prepared(
        rows=PackedRows(table, rows),
        ledger=_ledger(record["ledger"]),
        stop_ids=tuple(record["stop_ids"]),
    )


class _StoredRows(Sequence[Sequence[int]]):
    """The document indices of each row, read from two arrays."""

    def __init__(self, documents: np.ndarray, starts: np.ndarray) -> None:
        self._documents, self._starts = documents, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(index)
        return self._documents[self._starts[number] : self._starts[number + 1]].tolist()


def _ledger(record: dict[str, Any]) -> Ledger:
    counters = {f.name for f in dataclasses.fields(Ledger) if str(f.type).startswith("Counter")}
    values: dict[str, Any] = {name: Counter(own) if name in counters else own for name, own in record.items()}
    return Ledger(**values)


def _rows_state(data: Any) -> Iterator[bytes] | None:
    fingerprint = getattr(data, "_fingerprint", None)
    if isinstance(fingerprint, str) and hasattr(data, "column_names"):
        return iter([fingerprint.encode()])
    files = files_of(data)
    if files is None or not all(path.is_file() for path in files):
        return None  # `prepare` reports a missing file
    return _file_bytes(files)


def _file_bytes(files: Sequence[Path]) -> Iterator[bytes]:
    for path in files:
        yield str(path).encode()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block


def _tokenizer_state(tokenizer: Any) -> Iterator[bytes]:
    for text in all_of(tokenizer):
        yield text.encode()
        yield b"\0"


def _options_state(options: PrepareOptions) -> Iterator[bytes]:
    yield json.dumps(dataclasses.asdict(options), sort_keys=True, default=str).encode()
    if Path(options.template).is_file():
        yield Path(options.template).read_bytes()


def _code_state() -> Iterator[bytes]:
    """Yields the code of data preparation: a changed line, or another library version, changes the key."""
    for library in ("tokenizers", "transformers", "jinja2"):
        yield version(library).encode() + b"\0"
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        yield path.read_bytes()
