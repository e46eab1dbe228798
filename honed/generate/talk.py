"""Streamed answers, for one conversation after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from honed.data.example import Message
from honed.data.templates.view import Template
from honed.generate.answer import prompt_ids
from honed.generate.choice import open_engine, sampling_of, stop_ids
from honed.generate.request import Piece, Request, TextEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Talker:
    """A model that answers conversations one at a time; its engine stays open between them.

    `note` says why the engine is not honed's own; "" if it is.
    """

    model: Any
    tokenizer: Any
    template: Template
    engine: TextEngine
    note: str

    def reply(
        self, messages: Sequence[Message], *, max_new_tokens: int, seed: int, sampling: Mapping[str, Any]
    ) -> Iterator[Piece]:
        """Pieces of the answer; the last one also has the whole answer.

        Args:
            sampling: arguments of transformers' `generate`, as `honed.generate.choice.OWN` lists them.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        request = Request(
            prompt_ids=prompt_ids(self.tokenizer, self.template, [messages])[0],
            max_new_tokens=max_new_tokens,
            sampling=sampling_of(self.model, sampling),
            stop_ids=frozenset(stop_ids(self.model)),
            seed=seed,
        )
        return self.engine.run([request], pieces=True)


@contextmanager
def open_talker(model: Any, tokenizer: Any, template: Template) -> Iterator[Talker]:
    """Yields a talker; its engine closes at the end of the block."""
    with open_engine(model, tokenizer, slots=1) as (engine, note):
        yield Talker(model=model, tokenizer=tokenizer, template=template, engine=engine, note=note)
