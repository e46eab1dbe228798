"""Holds out a share of the rows for evaluation: independent of their order, with no similar rows on both sides.

Similar rows stay together. Rows are similar if they are equal apart from case, whitespace, punctuation and digits, or
near-duplicates by MinHash (about 0.7 of their three-word shingles in common), directly or through other rows. Groups
are ranked by a hash of the seed and their texts, and held out in that order until the share is reached; a group that
would exceed it is skipped. So a row's side depends on its content, on the seed and on the rest of the data, but never
on its position.

System messages are not compared: rows often share a long one and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from honed.data.mix.minhash import connected, near_groups, signatures
from honed.data.mix.mixture import Mixture, stable_hash, with_data
from honed.data.read.formats import LISTS_OF_MESSAGES, OTHER_CONTENT
from honed.data.read.sources import SourcedRow, SourcedRows, UnreadRow, read_rows, unread_rows
from honed.errors import DataError, RecipeError
from honed.quantities import counted

ALIKE = 0.7  # estimated similarity; lower than for finding duplicates, because a miss here is a leak
ROWS_AT_A_TIME = 1000
_DIGITS, _NO_WORD = re.compile(r"\d+(?:[.,]\d+)*"), re.compile(r"[\W_]+")
_AS_LETTERS = str.maketrans("0123456789", "abcdefghij")
_ROLE_KEYS = ("role", "from")
_ROLE_ONLY = frozenset({"system", "developer"})
# Keys that the formats read. For rows without any of them (a formatting function's), all columns are compared.
READ = (*LISTS_OF_MESSAGES, "chosen", *OTHER_CONTENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Both sides, and how they were formed.

    Attributes:
        train, held_out: mixtures; weights, caps and repeats apply to the training side only.
        note: a note for the ledger.
    """

    train: Mixture
    held_out: Mixture
    note: str


def split(
    mixture: Mixture,
    share: float,
    *,
    seed: int,
    columns: Mapping[str, str] | None = None,
    text_field: str | None = None,
) -> Split:
    """Holds out a share of all rows of all sources. The sources are read now, and again for each side.

    Args:
        mixture: all sources.
        share: fraction of the rows, above 0 and below 1.
        seed: determines which rows are held out.
        columns, text_field: how the rows are read (see `ReadOptions`), so that only their content is compared.

    Raises:
        RecipeError: the share is not between 0 and 1.
        DataError: there are too few rows, or they are too similar, to be split.
    """
    if not 0 < share < 1:
        raise RecipeError(f"eval_share is {share}.", fix="set a share of the rows above 0 and below 1, such as 0.02")
    texts, signed, counts = _digest(mixture, _keys(columns or {}, text_field))
    groups = groups_of(texts, signed)
    held = hold_out(groups, texts, share, seed=seed)
    if not held.any() or held.all():
        largest = int(np.bincount(groups).max()) if len(groups) else 0
        raise DataError(
            f"{share:.1%} of {counted(len(groups), 'row')} cannot be held out; the largest group of rows alike has "
            f"{largest:,} (alike: equal up to digits, case and punctuation, or nearly).",
            fix="set data.eval_share=null; to evaluate, name a separate file with data.held_out",
        )
    sides = np.split(held, np.cumsum(counts)[:-1])
    are = "is" if held.sum() == 1 else "are"
    return Split(
        train=with_data(mixture, _side(mixture, [~side for side in sides])),
        held_out=with_data(mixture, _side(mixture, sides), weight=None, cap=None, repeat=1),
        note=f"{held.sum():,} of {counted(len(held), 'row')} ({held.mean():.1%}) {are} held out for evaluation, in "
        f"{counted(len(np.unique(groups[held])), 'group')} of rows alike",
    )


def _keys(columns: Mapping[str, str], text_field: str | None) -> tuple[str, ...]:
    """Returns the columns with content: `READ` with the names in these rows."""
    named = () if text_field is None else (text_field,)
    return (*dict.fromkeys(columns.get(key, key) for key in READ), *named)


def content(row: Any, keys: Sequence[str] = READ) -> str:
    """Returns a row's text in these columns, normalised for comparison, without system messages."""
    read = {key: row[key] for key in keys if key in row} if isinstance(row, Mapping) else None
    try:
        said = " ".join(_texts(read or row)) or repr(row)
    except RecursionError:  # cannot be trained on, so its side does not matter
        said = "nested too deeply"
    even = _NO_WORD.sub(" ", _DIGITS.sub("0", said.casefold())).strip()
    return even or said  # only punctuation


def groups_of(texts: np.ndarray, signed: np.ndarray) -> np.ndarray:
    """Groups similar rows; returns the group index of each row, int64, shape (rows,).

    Args:
        texts: hashes of the rows' content, uint64, shape (rows,).
        signed: their MinHash signatures, shape (rows, PLACES).
    """
    _, first, number = np.unique(texts, return_index=True, return_inverse=True)
    there = near_groups(signed[first], least=ALIKE)
    # Candidates are compared only with the first of their bucket: in reverse order, other rows come first.
    back = len(first) - 1 - near_groups(signed[first][::-1], least=ALIKE)[::-1]
    links = chain(enumerate(there.tolist()), enumerate(back.tolist()))
    return connected(len(first), links)[number.reshape(-1)]


def hold_out(groups: np.ndarray, texts: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    """Selects whole groups to hold out, up to the share of rows, but at least one row; bool, shape (rows,).

    Args:
        groups: the group of each row.
        texts: hashes of the rows' content, which identify groups independently of the rows' order.
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    names = np.full(len(sizes), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(names, member.reshape(-1), texts)
    ranks = [stable_hash(f"{seed}:{name}") for name in names.tolist()]
    room, chosen = max(1, round(share * len(groups))), np.zeros(len(sizes), dtype=bool)
    for group in sorted(range(len(sizes)), key=ranks.__getitem__):
        if sizes[group] <= room:
            chosen[group] = True
            room -= int(sizes[group])
    return chosen[member.reshape(-1)]


def _digest(mixture: Mixture, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Returns hash and signature of every row's content, and the number of rows per part; no text is kept."""
    texts: list[int] = []
    signed: list[np.ndarray] = []
    counts = []
    for part in mixture.parts:
        before = len(texts)
        rows = read_rows(part.data)
        while chunk := [content(row, keys) for _, row in islice(rows, ROWS_AT_A_TIME)]:
            texts += map(stable_hash, chunk)
            signed.append(signatures(chunk))
        counts.append(len(texts) - before)
    if not texts:
        raise DataError("There are no rows to hold a share out of.", fix="check data.files")
    return np.array(texts, dtype=np.uint64), np.concatenate(signed), counts


def _side(mixture: Mixture, wanted: Sequence[np.ndarray]) -> list[SourcedRows]:
    return [_Chosen(part.data, which) for part, which in zip(mixture.parts, wanted, strict=True)]


class _Chosen(SourcedRows):
    """The rows of `data` for which `wanted` is true."""

    def __init__(self, data: Any, wanted: np.ndarray) -> None:
        super().__init__(self._read)
        self._data, self._wanted = data, wanted

    def __len__(self) -> int:
        return int(self._wanted.sum())

    def _read(self) -> Iterator[SourcedRow]:
        return (row() for row in self.unread())

    def unread(self) -> Iterator[UnreadRow]:
        for number, row in enumerate(unread_rows(self._data)):
            if number >= len(self._wanted):
                raise DataError(
                    f"{row()[0]}: this row was not there a moment ago.",
                    fix="do not change the data while they are read",
                )
            if self._wanted[number]:
                yield row


def _texts(value: Any) -> Iterable[str]:
    """Yields all texts in a row except system messages and role names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if not any(value.get(key) in _ROLE_ONLY for key in _ROLE_KEYS if isinstance(value.get(key), str)):
            for key, inner in value.items():
                if key not in (*_ROLE_KEYS, "system"):
                    yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        if value and all(isinstance(item, int) for item in value):
            # Ids as letters, because digits in texts are normalised.
            yield " ".join(str(abs(token)).translate(_AS_LETTERS) for token in value)
        for item in value:
            yield from _texts(item)
