"""Removes keys that Arrow adds: all structs of a column have the same keys, and missing ones are filled with null.

    [{"a": 1}, {"b": 2}]   in a table, and read from it:   [{"a": 1, "b": None}, {"a": None, "b": 2}]

A chat template would print them: other tools' parameters in a prompt, other calls' arguments in a trained call. A null
from the data cannot be distinguished from them; if that matters, store tools and calls as JSON text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def padded_columns(schema: Any) -> list[str]:
    """Columns of an Arrow schema with structs inside structs: padding does not matter in plain messages."""
    return [field.name for field in schema if _structs(field.type) > 1]


def without_padding(row: Mapping[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """The row without null keys inside these columns; the columns themselves stay."""
    return {**row, **{name: _stripped(row[name]) for name in columns}}


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stripped(inner) for key, inner in value.items() if inner is not None}
    return [_stripped(inner) for inner in value] if isinstance(value, list) else value


def _structs(kind: Any) -> int:
    """The depth of nested structs."""
    import pyarrow as pa

    inner = max((_structs(kind.field(n).type) for n in range(kind.num_fields)), default=0)
    return inner + pa.types.is_struct(kind)
