"""Continuous batching: assigns answers to slots; a free slot takes the next answer immediately.

All answers to a prompt start from its keys and values: in the slot that holds them if it is free, otherwise from a
copy. They stay intact until the last answer has started, because rows write only after their prompt, and waiting
answers get free slots before new prompts.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

from honed.generate.request import Request
from honed.generate.text import TextStream


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A request in progress: `slot` holds its prompt, `started` answers have begun, `logits_V` follow the prompt."""

    number: int
    request: Request
    slot: int
    started: int = 0
    logits_V: torch.Tensor | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """An answer in progress, in its slot."""

    job: Job
    answer: int
    slot: int
    draws: random.Random
    text: TextStream | None = None
    ids: list[int] = field(default_factory=list)

    @property
    def place(self) -> int:
        """Position of the newest token, which the next forward computes."""
        return len(self.job.request.prompt_ids) + len(self.ids) - 1


class Schedule:
    """Waiting requests, jobs with waiting answers, and running rows.

    Args:
        requests: taken from only when a slot is free.
        slots: rows at a time.
        prompt_tokens: maximum number of tokens of prompts that start together; a longer prompt starts alone.
    """

    def __init__(self, requests: Iterable[Request], *, slots: int, prompt_tokens: int) -> None:
        self.rows: dict[int, Row] = {}
        self._slots, self._prompt_tokens = slots, prompt_tokens
        self._requests: Iterator[tuple[int, Request]] = enumerate(requests)
        self._next: tuple[int, Request] | None = None
        self._waiting: list[Job] = []

    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.rows or self._waiting or self._peek() is not None)

    def answers(self) -> Iterator[tuple[Row, int]]:
        """Answers that start now from a computed prompt, each with the slot that holds the prompt."""
        for slot in self._free():
            if not self._waiting:
                return
            job = next((job for job in self._waiting if job.slot == slot), self._waiting[0])
            yield self.start(job, slot), job.slot

    def prompts(self) -> list[Job]:
        """Requests whose prompts are computed now, sorted by length over the slots, so that neighbours share a call."""
        free = list(self._free()) if not self._waiting else []
        taken: list[tuple[int, Request]] = []
        tokens = 0
        while len(taken) < len(free) and (request := self._peek()) is not None:
            tokens += len(request[1].prompt_ids)
            if taken and tokens > self._prompt_tokens:
                break
            taken.append(request)
            self._next = None
        ordered = sorted(taken, key=lambda item: len(item[1].prompt_ids))
        return [Job(number=n, request=request, slot=slot) for slot, (n, request) in zip(free, ordered, strict=False)]

    def start(self, job: Job, slot: int) -> Row:
        """The job's next answer, running in this slot."""
        answer = job.request.first + job.started
        draws = random.Random(f"{job.request.seed}:{answer}")
        row = self.rows[slot] = Row(job=job, answer=answer, slot=slot, draws=draws)
        job.started += 1
        waits = job.started < job.request.answers
        if waits and job not in self._waiting:
            self._waiting.append(job)
        elif not waits and job in self._waiting:
            self._waiting.remove(job)
        return row

    def running(self) -> list[Row]:
        """Rows in the order of their slots."""
        return [self.rows[slot] for slot in sorted(self.rows)]

    def _free(self) -> Iterator[int]:
        return (slot for slot in range(self._slots) if slot not in self.rows)

    def _peek(self) -> tuple[int, Request] | None:
        if self._next is None:
            self._next = next(self._requests, None)
        return self._next
