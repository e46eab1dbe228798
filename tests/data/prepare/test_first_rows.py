"""Faults of the first rows are told early, and as preparing all rows tells them; what else there is stays unread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from honed.data.prepare.first_rows import refuse_bad_rows
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.read.sources import SourcedRows, read_rows
from honed.errors import DataError

Rows = list[dict[str, Any]]
FAULTY = {"messages": [{"role": "user", "content": "why?"}]}  # nobody answers


@pytest.mark.parametrize("at", [0, 3])
def test_a_fault_is_told_as_prepare_tells_it(at: int, chat_rows: Rows, tiny_tokenizer: Any) -> None:
    rows = [*chat_rows[:at], FAULTY, *chat_rows[at:], FAULTY]
    told = []
    for look in (prepare, refuse_bad_rows):
        with pytest.raises(DataError) as error:
            look(rows, tiny_tokenizer, PrepareOptions())
        told.append(str(error.value))
    assert told[0] == told[1]


def test_a_fault_further_down_is_left_to_prepare(chat_rows: Rows, tiny_tokenizer: Any) -> None:
    refuse_bad_rows([*chat_rows, FAULTY], tiny_tokenizer, PrepareOptions(), count=len(chat_rows))
    with pytest.raises(DataError):
        refuse_bad_rows([*chat_rows, FAULTY], tiny_tokenizer, PrepareOptions(), count=len(chat_rows) + 1)


@pytest.mark.parametrize("overlong", ["drop", "truncate", "split"])
def test_length_is_no_fault_of_theirs(overlong: Any, chat_rows: Rows, tiny_tokenizer: Any) -> None:
    refuse_bad_rows(chat_rows, tiny_tokenizer, PrepareOptions(max_length=4, overlong=overlong))


def test_no_more_is_read_than_is_looked_at(chat_rows: Rows, tiny_tokenizer: Any) -> None:
    read = []

    def rows() -> Iterator[Any]:
        for row in read_rows(chat_rows):
            read.append(row)
            yield row

    refuse_bad_rows(SourcedRows(rows), tiny_tokenizer, PrepareOptions(), count=5)
    assert len(read) == 5
