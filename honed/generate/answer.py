"""Answers of a model to many prompts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from honed.data.example import Message
from honed.data.formats import RowError
from honed.data.render import Renderer
from honed.data.template import Piece, Template
from honed.errors import ModelError, TemplateError
from honed.progress import progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said.

    Attributes:
        text: the answer, special tokens left out.
        stopped: it ended by itself with a stop token, and was not cut at the limit.
        tokens: how many were generated, the stop token included.
    """

    text: str
    stopped: bool
    tokens: int


def ask(text: str, system: str | None = None) -> tuple[Message, ...]:
    """A question as messages."""
    before = (Message(role="system", content=system),) if system else ()
    return (*before, Message(role="user", content=text))


@torch.no_grad()
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
    **sampling: Any,
) -> list[Answer]:
    """One answer for each conversation, greedy unless `sampling` says otherwise.

    Args:
        model: a causal language model; left in the mode (training or not) it was in.
        template: makes the same prompt ids as in training.
        conversations: messages up to the answer that is wanted.
        show: whether to show a progress bar.
        sampling: further arguments of transformers' `generate`.

    Raises:
        TemplateError: the template refuses a conversation, such as one with a system prompt.
    """
    renderer = Renderer(tokenizer, template)
    prompts = [renderer.prompt_ids(_prompt(template, messages)) for messages in conversations]
    found: list[Answer] = []
    was_training = model.training
    model.eval()
    try:
        batches = list(_batches(prompts, batch_size))
        for batch in progress(batches, desc=desc, unit="batch") if show else batches:
            found += _answer_batch(model, tokenizer, batch, max_new_tokens, sampling)
    finally:
        model.train(was_training)
    return found


def need_template(template: Template | None, name: str) -> Template:
    """The template, or an error for a model that has none."""
    if template is None:
        raise ModelError(
            f"{name} has no chat template.", fix="train it first, with data.template=plain or a Jinja file"
        )
    return template


def stop_ids(model: Any) -> list[int]:
    """Ids at which this model's generation stops."""
    ids = model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids or [])


def _prompt(template: Template, messages: Sequence[Message]) -> tuple[Piece, ...]:
    try:
        return template.prompt(messages)
    except RowError as error:
        roles = ", ".join(message.role for message in messages)
        raise TemplateError(
            f"{error}\n  roles: {roles}", fix="leave out the system prompt, or use another template"
        ) from None


def _answer_batch(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int, sampling: dict[str, Any]
) -> list[Answer]:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    ids_BL, mask_BL = _left_padded(prompts, pad)
    output_BL = model.generate(
        input_ids=ids_BL.to(model.device),
        attention_mask=mask_BL.to(model.device),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        **{"do_sample": False, **sampling},
    )
    stops = set(stop_ids(model))
    return [_answer(row, tokenizer, stops) for row in output_BL[:, ids_BL.shape[1] :].tolist()]


def _answer(ids: list[int], tokenizer: Any, stops: set[int]) -> Answer:
    end = next((n for n, token in enumerate(ids) if token in stops), None)
    kept = ids if end is None else ids[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return Answer(text=text, stopped=end is not None, tokens=len(kept) + (end is not None))


def _left_padded(prompts: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 (B, L) ids and mask; prompts end at the same column, where the answers begin."""
    width = max(map(len, prompts))
    ids_BL = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask_BL = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids_BL, mask_BL


def _batches(items: Sequence[list[int]], size: int) -> Iterator[Sequence[list[int]]]:
    return (items[start : start + size] for start in range(0, len(items), size))
