"""honed's decoding engine for causal language models of transformers: many prompts at once, by continuous batching.

    waiting prompts --> free slots --> one forward: new prompts flat, one token of each running row --> a token each
                          ^                                                                               |
                          '---------------------- a row that ended leaves its slot <----------------------'

There is no padding: prompts lie end to end, and each row's attention reads only its own length. The model class is
unmodified. Within its `with` block the engine uses two public interfaces: the model's attention implementation and its
cache. On the CPU the linear layers are packed as well (`honed/ops/packed_linear.py`).

    with Engine(model, tokenizer) as engine:
        for piece in engine.run([Request(prompt_ids=ids, stop_ids=frozenset({2}))], pieces=True):
            print(piece.text, end="")

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from honed.errors import ModelError
from honed.generate.engine.cache import RowCache, Step, plan_step
from honed.generate.engine.row_attention import NAME, register
from honed.generate.engine.schedule import Row, Schedule
from honed.generate.request import Completion, Piece, Reason, Request, evaluating
from honed.generate.sampling import Sampling, choose
from honed.generate.text import TextStream
from honed.ops.packed_linear import packed_linears

SLOTS = 16
PROMPT_TOKENS = 2048


class Engine:
    """Answers requests with a model that passes `honed.generate.engine.fits.why_not`; a context manager.

    Args:
        model: a causal language model; in evaluation mode within the block, its mode is restored afterwards.
        tokenizer: for text and stop strings; without one, answers are ids only.
        slots: rows at a time.
        prompt_tokens: maximum number of prompt tokens computed together, which bounds their memory.
    """

    def __init__(
        self, model: Any, tokenizer: Any = None, *, slots: int = SLOTS, prompt_tokens: int = PROMPT_TOKENS
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._slots, self._prompt_tokens = slots, prompt_tokens
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
        self._open: ExitStack | None = None

    def __enter__(self) -> Engine:
        with ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            stack.enter_context(_own_attention(self._model))
            stack.enter_context(packed_linears(self._model))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def run(self, requests: Iterable[Request], *, pieces: bool = False) -> Iterator[Piece]:
        """One piece per finished answer; with `pieces`, several per answer as the text is generated.

        Args:
            requests: any number; they are taken one by one as slots become free.

        Raises:
            ModelError: a request has stop strings, but the engine has no tokenizer.
        """
        if self._open is None:
            raise RuntimeError("an engine answers within its `with` block only")
        schedule = Schedule(requests, slots=self._slots, prompt_tokens=self._prompt_tokens)
        cache = RowCache(self._slots)
        while schedule.busy():
            yield from self._start_answers(schedule, cache, pieces)
            jobs = schedule.prompts()
            too_long = [job for job in jobs if len(job.request.prompt_ids) >= self._context]
            for job in too_long:
                yield from _unanswered(job.number, job.request)
            jobs = [job for job in jobs if job not in too_long]
            rows = schedule.running()
            if rows or jobs:
                prompts = [(job.slot, job.request.prompt_ids) for job in jobs]
                running = [(row.slot, row.ids[-1], row.place) for row in rows]
                logits_NV = self.forward(plan_step(cache, prompts, running, self._model.device))
                for job, logits_V in zip(jobs, logits_NV, strict=False):
                    job.logits_V = logits_V if job.request.answers > 1 else None
                begun = [self._with_text(schedule.start(job, job.slot), pieces) for job in jobs]
                yield from self._advance(schedule, [*begun, *rows], logits_NV, pieces)

    @torch.no_grad()
    def forward(self, step: Step) -> torch.Tensor:
        """Logits (N, V) after each prompt and each running row of a step."""
        step.cache.begin(step)
        output = self._model(
            input_ids=step.input_ids_1T,
            position_ids=step.position_ids_1T,
            past_key_values=step.cache,
            use_cache=True,
            logits_to_keep=step.last_N,
            generation_step=step,
        )
        logits_NV: torch.Tensor = output.logits[0]
        # a model without `logits_to_keep` returns logits for all tokens
        return logits_NV if len(logits_NV) == len(step.last_N) else logits_NV[step.last_N]

    def _start_answers(self, schedule: Schedule, cache: RowCache, pieces: bool) -> Iterator[Piece]:
        """Starts further answers to prompts that have been computed."""
        rows = []
        for row, source in schedule.answers():
            if row.slot != source:
                cache.copy(source, row.slot, len(row.job.request.prompt_ids))
            rows.append(self._with_text(row, pieces))
        if rows:
            logits = [row.job.logits_V for row in rows if row.job.logits_V is not None]
            yield from self._advance(schedule, rows, torch.stack(logits), pieces)

    def _advance(
        self, schedule: Schedule, rows: Sequence[Row], logits_NV: torch.Tensor, pieces: bool
    ) -> Iterator[Piece]:
        """Adds one token to each row; finished rows free their slots."""
        for row, token in zip(rows, _choose(rows, logits_NV), strict=True):
            row.ids.append(token)
            stop = token in row.job.request.stop_ids
            new = row.text.feed(token) if row.text is not None and not stop else ""
            reason = self._reason(row, stop)
            if reason is not None:
                del schedule.rows[row.slot]
                yield self._done(row, reason, new)
            elif pieces and new:
                yield Piece(request=row.job.number, answer=row.answer, text=new)

    def _reason(self, row: Row, stop: bool) -> Reason | None:
        if stop:
            return "stop"
        if row.text is not None and row.text.stopped:
            return "stop_string"
        if len(row.ids) >= row.job.request.max_new_tokens:
            return "length"
        return "context" if row.place >= self._context else None

    def _done(self, row: Row, reason: Reason, new: str) -> Piece:
        if row.text is not None:
            new += row.text.close()
            text = row.text.text
            reason = "stop_string" if row.text.stopped and reason != "stop" else reason
        else:
            text = new = self._decode(row.ids[: len(row.ids) - (reason == "stop")])
        done = Completion(ids=tuple(row.ids), text=text, reason=reason)
        return Piece(request=row.job.number, answer=row.answer, text=new, done=done)

    def _with_text(self, row: Row, pieces: bool) -> Row:
        stops = row.job.request.stop_strings
        if stops and self._tokenizer is None:
            raise ModelError("Stop strings need a tokenizer.", fix="give the engine the model's tokenizer")
        if stops or pieces:
            row.text = TextStream(self._decode, stops)
        return row

    def _decode(self, ids: list[int]) -> str:
        return "" if self._tokenizer is None else str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _choose(rows: Sequence[Row], logits_NV: torch.Tensor) -> list[int]:
    """The next token of each row; rows with the same sampling settings are processed together."""
    alike: dict[Sampling, list[int]] = {}
    for number, row in enumerate(rows):
        alike.setdefault(row.job.request.sampling, []).append(number)
    tokens = [0] * len(rows)
    for sampling, numbers in alike.items():
        logits = logits_NV if len(alike) == 1 else logits_NV[numbers]
        penalised = sampling.repetition_penalty != 1
        seen = [[*rows[n].job.request.prompt_ids, *rows[n].ids] if penalised else [] for n in numbers]
        uniforms = [rows[n].draws.random() if sampling.temperature else 0.0 for n in numbers]
        for number, token in zip(numbers, choose(logits, sampling, seen, uniforms), strict=True):
            tokens[number] = token
    return tokens


def _unanswered(number: int, request: Request) -> Iterator[Piece]:
    """Empty answers for a prompt that leaves no room in the model's context."""
    for answer in range(request.answers):
        yield Piece(
            request=number, answer=request.first + answer, text="", done=Completion(ids=(), text="", reason="context")
        )


@contextmanager
def _own_attention(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(register())
    if model.config._attn_implementation != NAME:
        raise NotImplementedError("its attention cannot be replaced")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
