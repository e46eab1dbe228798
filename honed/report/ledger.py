"""Reads ledger.json defensively: a value of the wrong type is kept as written, and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from honed.report.json_values import finite, text_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A dropped or cut row: where it came from ("train.jsonl:17") and the reason; `others` as written."""

    source: str
    reason: str
    others: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedLedger:
    """What became of every row. Counts are rows unless named otherwise; None means that the file did not say."""

    rows_in: float | None
    rows_trained: float | None
    rows_dropped: Mapping[str, float] | None
    rows_cut: Mapping[str, float]
    conversations_split_into_views: float | None
    packed_rows: float | None
    tokens: float | None
    trained_tokens: float | None
    padding_share: float | None
    examples: tuple[Example, ...]
    stop_tokens: tuple[str, ...]
    notes: tuple[str, ...]
    others: Mapping[str, object]


def parse_ledger(raw: Mapping[str, object]) -> SavedLedger:
    """A ledger from its JSON; a known key with a value of the wrong type goes to `others`, as written."""
    rest = dict(raw)
    return SavedLedger(
        rows_in=_take(rest, "rows_in", finite),
        rows_trained=_take(rest, "rows_trained", finite),
        rows_dropped=_take(rest, "rows_dropped", _counts),
        rows_cut=_take(rest, "rows_cut", _counts) or {},
        conversations_split_into_views=_take(rest, "conversations_split_into_views", finite),
        packed_rows=_take(rest, "packed_rows", finite),
        tokens=_take(rest, "tokens", finite),
        trained_tokens=_take(rest, "trained_tokens", finite),
        padding_share=_take(rest, "padding_share", finite),
        examples=_take(rest, "examples", _examples) or (),
        stop_tokens=_take(rest, "stop_tokens", _names) or (),
        notes=_take(rest, "notes", _texts) or (),
        others=rest,
    )


def _take(rest: dict[str, object], key: str, read: Callable[[object], T | None]) -> T | None:
    """Reads one key and removes it from `rest`, unless its value has the wrong type."""
    value = read(rest.get(key))
    if value is not None or rest.get(key) is None:
        rest.pop(key, None)
    return value


def _counts(value: object) -> Mapping[str, float] | None:
    if not isinstance(value, dict):
        return None
    counts = {str(key): finite(number) for key, number in value.items()}
    known = {key: number for key, number in counts.items() if number is not None}
    return known if len(known) == len(counts) else None


def _names(value: object) -> tuple[str, ...] | None:
    """The names in a list, or the keys of a mapping of counts."""
    return tuple(map(str, value)) if isinstance(value, dict) else _texts(value)


def _texts(value: object) -> tuple[str, ...] | None:
    return tuple(text_of(item) or "null" for item in value) if isinstance(value, list) else None


def _examples(value: object) -> tuple[Example, ...] | None:
    return tuple(_example(item) for item in value) if isinstance(value, list) else None


def _example(value: object) -> Example:
    if not isinstance(value, dict):
        return Example(source="", reason=text_of(value) or "null")
    others = {key: item for key, item in value.items() if key not in ("source", "reason")}
    return Example(source=text_of(value.get("source")) or "", reason=text_of(value.get("reason")) or "", others=others)
