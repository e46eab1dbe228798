"""Requests and answers, the interface that all engines share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from honed.errors import DataError
from honed.generate.sampling import Sampling

Reason = Literal["stop", "stop_string", "length", "context"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt, and how to answer it.

    Attributes:
        prompt_ids: the prompt's tokens, without padding; at least one.
        max_new_tokens: maximum number of tokens of an answer, including its stop token.
        sampling: how tokens are chosen.
        stop_ids: tokens that end an answer.
        stop_strings: strings that end an answer, also across token boundaries; they are not part of it.
        seed: seed for sampling; with the answer's number it determines the draws, whatever else is in the batch.
        answers: number of answers; the prompt is computed once.
        first: number of the first answer, which determines its draws; a resumed batch requests later ones.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    seed: int = 0
    answers: int = 1
    first: int = 0

    def __post_init__(self) -> None:
        if not len(self.prompt_ids):
            raise DataError("A prompt without tokens cannot be answered.", fix="give at least one token")
        for name in ("max_new_tokens", "answers"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}.", fix="it must be 1 or more")
        if "" in self.stop_strings:
            raise DataError("A stop string is empty.", fix="leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer.

    Attributes:
        ids: the generated tokens, including the stop token.
        text: their text without special tokens, up to the stop string; "" if the engine has no tokenizer.
        reason: why it ended: a stop token, a stop string, `max_new_tokens`, or the model's maximum context.
    """

    ids: tuple[int, ...]
    text: str
    reason: Reason

    @property
    def stopped(self) -> bool:
        """Whether it ended by itself and was not cut."""
        return self.reason in ("stop", "stop_string")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A new part of an answer; the texts of all its pieces, joined, are its text.

    Attributes:
        request: number of the request, from 0 in the order given.
        answer: number of the answer, from the request's `first`.
        text: the new text.
        done: the whole answer; None except in the last piece.
    """

    request: int
    answer: int
    text: str
    done: Completion | None = None


class TextEngine(Protocol):
    """An engine that answers requests: honed's own, transformers' `generate`, or vLLM."""

    def run(self, requests: Iterable[Request], *, pieces: bool = False) -> Iterator[Piece]:
        """One piece per finished answer; with `pieces`, several per answer as the text is generated."""


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Puts the model into evaluation mode within the block, and restores its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def complete(engine: TextEngine, requests: Sequence[Request]) -> list[list[Completion]]:
    """All answers to each request, in order."""
    found: list[dict[int, Completion]] = [{} for _ in requests]
    for piece in engine.run(requests):
        if piece.done is not None:
            found[piece.request][piece.answer] = piece.done
    return [[answers[number] for number in sorted(answers)] for answers in found]


def unpadded(input_ids_BL: torch.Tensor, attention_mask_BL: torch.Tensor) -> list[list[int]]:
    """The prompts of a padded batch, whichever side the padding is on.

    Args:
        input_ids_BL: int64 (B, L).
        attention_mask_BL: (B, L), 0 at padding.
    """
    return [ids[keep].tolist() for ids, keep in zip(input_ids_BL, attention_mask_BL.bool(), strict=True)]
