"""Reads single rows, for the tests of formats."""

from __future__ import annotations

from typing import Any

from honed.data.example import Source
from honed.data.read.formats import ReadOptions, read_example

SOURCE = Source(file="f", row=1)
USER, ANSWER = {"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}


def read(row: Any, format: str = "auto", **options: Any) -> Any:
    return read_example(row, SOURCE, ReadOptions(**options), format=format)


def turns(row: Any, **options: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in read(row, **options).messages]


ALPACA = {"instruction": "a", "input": "", "output": "b"}
HUMAN = [{"from": "human", "value": "why"}, {"from": "gpt", "value": "yes"}]
