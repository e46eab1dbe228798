"""A model's answers to many prompts at once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from honed.data.encode.render import Renderer
from honed.data.example import Message, RowError
from honed.data.templates.view import Piece, Template
from honed.errors import ModelError, TemplateError
from honed.generate.choice import OWN, open_engine, sampling_of, stop_ids
from honed.generate.request import Completion, Request, TextEngine
from honed.progress import progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A model's answer.

    Attributes:
        text: the answer without special tokens.
        stopped: whether it ended with a stop token and was not cut at the limit.
        tokens: number of generated tokens, including the stop token.
    """

    text: str
    stopped: bool
    tokens: int


def ask(text: str, system: str | None = None) -> tuple[Message, ...]:
    """A question as messages."""
    before = (Message(role="system", content=system),) if system else ()
    return (*before, Message(role="user", content=text))


def answers(
    model: Any,
    tokenizer: Any,
    template: Template,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 16,
    desc: str = "Answering",
    show: bool = True,
    seed: int | None = None,
    **sampling: Any,
) -> list[Answer]:
    """One answer to each conversation, greedy unless `sampling` says otherwise.

    Args:
        model: a causal language model; it stays in its mode (training or evaluation).
        template: makes the same prompt ids as in training.
        conversations: the messages before each answer.
        batch_size: rows at a time; the answers do not depend on it.
        show: whether to show a progress bar.
        seed: seed for sampling; None draws one from torch's global generator.
        sampling: arguments of transformers' `generate`. If honed's engine does not support one of them, or the model,
            `generate` itself is used; the log says so.

    Raises:
        TemplateError: the template refuses a conversation, for example because of its system prompt.
    """
    prompts = prompt_ids(tokenizer, template, conversations)
    if not prompts:
        return []
    first = int(torch.randint(2**31, ())) if seed is None else seed
    chosen = sampling_of(model, sampling)
    stops = frozenset(stop_ids(model))
    requests = [
        Request(prompt_ids=ids, max_new_tokens=max_new_tokens, sampling=chosen, stop_ids=stops, seed=first + number)
        for number, ids in enumerate(prompts)
    ]
    further = {name: value for name, value in sampling.items() if name not in OWN}
    with open_engine(model, tokenizer, slots=batch_size, options=further) as (engine, note):
        if note:
            log.warning(note)
        done = _completions(engine, requests, desc if show else None)
    return [Answer(text=one.text, stopped=one.stopped, tokens=len(one.ids)) for one in done]


def prompt_ids(tokenizer: Any, template: Template, conversations: Iterable[Sequence[Message]]) -> list[list[int]]:
    """The prompt ids before each conversation's next answer, as in training."""
    renderer = Renderer(tokenizer, template)
    return [renderer.prompt_ids(_prompt(template, messages)) for messages in conversations]


def need_template(template: Template | None, name: str) -> Template:
    """The template; raises ModelError if the model has none."""
    if template is None:
        raise ModelError(
            f"{name} has no chat template.", fix="train it first, with data.template=plain or a Jinja file"
        )
    return template


def _prompt(template: Template, messages: Sequence[Message]) -> tuple[Piece, ...]:
    try:
        return template.prompt(messages)
    except RowError as error:
        roles = ", ".join(message.role for message in messages)
        raise TemplateError(
            f"{error}\n  roles: {roles}", fix="leave out the system prompt, or use another template"
        ) from None


def _completions(engine: TextEngine, requests: Sequence[Request], desc: str | None) -> list[Completion]:
    done: dict[int, Completion] = {}
    pieces = engine.run(requests)
    for piece in progress(pieces, desc=desc, total=len(requests), unit="answer") if desc else pieces:
        if piece.done is not None:
            done[piece.request] = piece.done
    return [done[number] for number in range(len(requests))]
