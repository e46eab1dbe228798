"""Keys that Arrow adds: all structs of a column have the same keys, and those that one does not have hold null.

    [{"a": 1}, {"b": 2}]   in a table, and read from it:   [{"a": 1, "b": None}, {"a": None, "b": 2}]

A chat template would print them: foreign parameters in the tools of a prompt, foreign arguments in a call that is
trained. A null that was really written cannot be told from them; where it matters, tools and calls can stand in the
table as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def padded_columns(schema: Any) -> list[str]:
    """Columns of an Arrow schema in which structs hold structs: there, and not in plain messages, it matters."""
    return [field.name for field in schema if _structs(field.type) > 1]


def without_padding(row: Mapping[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """The row without keys that hold null inside these columns; the columns themselves stay."""
    return {**row, **{name: _stripped(row[name]) for name in columns}}


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stripped(inner) for key, inner in value.items() if inner is not None}
    return [_stripped(inner) for inner in value] if isinstance(value, list) else value


def _structs(kind: Any) -> int:
    """How many structs stand inside each other."""
    import pyarrow as pa

    inner = max((_structs(kind.field(n).type) for n in range(kind.num_fields)), default=0)
    return inner + pa.types.is_struct(kind)
