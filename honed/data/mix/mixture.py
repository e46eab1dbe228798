"""Several sources in one dataset: their shares, caps and repeats, and how to read the rows of each.

One epoch contains, for every source,

    without weights   all its rows, `repeat` times each
    with weights      rows in proportion to the weights: the largest such epoch in which no row of a source occurs more
                      often than its `repeat` (1)

so 1,000 rows with weight 0.7 and 1,000 with 0.3 make an epoch of 1,000 + 429 rows, and 571 rows of the second source
are left out. Weights count trainable rows; a cap counts rows read, and rows above it are not rendered at all. Which
rows are left out depends only on the seed, the source's name and the row's number; each is counted in the ledger.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from honed.data.ledger import Ledger
from honed.data.read.sources import SourcedRow, read_rows
from honed.errors import DataError, RecipeError
from honed.recipe import suggest

LEFT_OUT_BY_CAP, LEFT_OUT_BY_WEIGHT = "left out by cap", "left out by weight"
READING = ("system", "format", "template", "template_arguments")  # options that a source may set for itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One source of a mixture.

    Attributes:
        data: anything that `sources.read_rows` reads.
        name: its name in the ledger.
        weight: share of rows, relative to the other weights; None if no part has one.
        cap: maximum number of rows to read.
        repeat: how often each row may occur in one epoch.
        system, format, template, template_arguments: for the rows of this source; None for the general options.
    """

    data: Any
    name: str = "rows"
    weight: float | None = None
    cap: int | None = None
    repeat: int = 1
    system: str | None = None
    format: str | None = None
    template: str | None = None
    template_arguments: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for key, value in (("cap", 1 if self.cap is None else self.cap), ("repeat", self.repeat)):
            if type(value) is not int or value < 1:
                raise RecipeError(f"{key} of source {self.name} is {value!r}.", fix="set a whole number, 1 or more")
        if self.weight is not None and not (type(self.weight) in (int, float) and 0 < self.weight < float("inf")):
            raise RecipeError(f"weight of source {self.name} is {self.weight!r}.", fix="set a number above 0, as 0.3")

    def reading(self) -> dict[str, Any]:
        """Returns the options that this source sets for itself."""
        return {key: value for key in READING if (value := getattr(self, key)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Sources that are trained together; accepted wherever rows are accepted.

    Attributes:
        parts: the sources.
        seed: determines which rows are left out.

    Raises:
        RecipeError: only some parts have weights, or there are no parts.
    """

    parts: tuple[Part, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        weightless = [part.name for part in self.parts if part.weight is None]
        if not self.parts:
            raise RecipeError("A mixture without sources.", fix="name at least one")
        if 0 < len(weightless) < len(self.parts):
            raise RecipeError(
                f"Some sources have a weight and these have none: {', '.join(weightless)}.",
                fix="give every source a weight, or none",
            )

    def rows(self, part: Part, ledger: Ledger) -> Iterator[SourcedRow]:
        """Yields the rows of this part that are used; `ledger` counts rows above its cap as read and dropped."""
        rows = read_rows(part.data)
        return rows if part.cap is None else iter(_sample(rows, part.cap, f"{self.seed}:{part.name}", ledger))

    def times(self, counts: Sequence[int]) -> list[np.ndarray]:
        """Returns how often each row of each part occurs in one epoch: int64, shape (rows of the part,).

        Args:
            counts: trainable rows of each part.

        Raises:
            DataError: a source with a weight has no rows, so no epoch can contain its share.
        """
        targets = _targets(self.parts, counts)
        made = zip(self.parts, counts, targets, strict=True)
        return [_spread(count, target, f"{self.seed}:{part.name}") for part, count, target in made]


def as_mixture(data: Any) -> Mixture:
    """Returns a mixture as is, and other `data` as a mixture of one part."""
    return data if isinstance(data, Mixture) else Mixture(parts=(Part(data=data),))


def mixture_from(sources: Sequence[Mapping[str, Any]], *, seed: int) -> Mixture:
    """Creates a mixture from the `data.sources` of a recipe.

    Raises:
        RecipeError: a source without files, an unknown key or an invalid value.
    """
    parts: list[Part] = []
    for number, source in enumerate(sources, start=1):
        parts.append(_part(source, f"data.sources[{number}]", {part.name for part in parts}))
    return Mixture(parts=tuple(parts), seed=seed)


def _part(source: Mapping[str, Any], place: str, taken: set[str]) -> Part:
    known = ["files", *(f.name for f in fields(Part) if f.name != "data")]
    for key in source:
        if key not in known:
            raise RecipeError(f"Unknown key {key!r} in {place}.", fix=suggest(str(key), known))
    files = source.get("files")
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, (list, tuple)) or not files or not all(isinstance(file, str) for file in files):
        raise RecipeError(f"{place} names no files: {files!r}.", fix="write files: a.jsonl, or a list of files")
    name = str(source.get("name") or ", ".join(files))
    unique = name if name not in taken else f"{name} ({len(taken) + 1})"
    given = {key: value for key, value in source.items() if key not in ("files", "name")}
    if not isinstance(given.get("template_arguments", {}), Mapping):
        raise RecipeError(f"template_arguments of {place} is no mapping.", fix="write key: value lines below it")
    return Part(data=list(files), name=unique, **given)


def with_data(mixture: Mixture, data: Sequence[Any], **changes: Any) -> Mixture:
    """Returns a copy of the mixture with other data in its parts and with `changes` applied to each part."""
    pairs = zip(mixture.parts, data, strict=True)
    return replace(mixture, parts=tuple(replace(part, data=rows, **changes) for part, rows in pairs))


def _targets(parts: Sequence[Part], counts: Sequence[int]) -> list[int]:
    """Returns the number of rows of each part in one epoch."""
    limits = [part.repeat * count for part, count in zip(parts, counts, strict=True)]
    weights = [part.weight for part in parts if part.weight is not None]
    if not weights:
        return limits
    for part, count in zip(parts, counts, strict=True):
        if not count:
            raise DataError(f"The source {part.name} has a weight, but no row to train.", fix="fix it, or leave it out")
    epoch = min(limit / weight for limit, weight in zip(limits, weights, strict=True))
    # At least one row: a very small weight would be rounded to none.
    return [min(limit, max(1, round(epoch * weight))) for limit, weight in zip(limits, weights, strict=True)]


def _spread(count: int, target: int, key: str) -> np.ndarray:
    """Returns counts that sum to `target`: all equal, plus one for rows that the key selects."""
    if not count:
        return np.zeros(0, dtype=np.int64)
    times = np.full(count, target // count, dtype=np.int64)
    times[np.random.default_rng(stable_hash(key)).permutation(count)[: target % count]] += 1
    return times


def _sample(rows: Iterator[SourcedRow], cap: int, key: str, ledger: Ledger) -> list[SourcedRow]:
    """Returns the `cap` rows with the smallest keyed hashes, in order, in one pass that holds only `cap` rows."""
    heap: list[tuple[int, int, SourcedRow]] = []
    for number, row in enumerate(rows):
        entry = (-stable_hash(f"{key}:{number}"), number, row)
        if len(heap) < cap:
            heapq.heappush(heap, entry)
        else:
            _, _, (source, _) = heapq.heappushpop(heap, entry)
            ledger.rows_in += 1
            ledger.drop(source, LEFT_OUT_BY_CAP)
    return [row for _, _, row in sorted(heap, key=lambda entry: entry[1])]


def stable_hash(text: str) -> int:
    """Returns a 64-bit hash of a text that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")
