"""TRL's helper functions for rows, for scripts that call them before training. honed itself does not need them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from honed.errors import DataError

Row = Mapping[str, Any]

_TALKS = ("prompt", "completion", "messages", "chosen", "rejected")
_WITH_CONVERSATIONS = (*_TALKS, "conversations")
_READ = ({"messages"}, {"prompt"}, {"prompt", "completion"})  # for supervised fine-tuning


def is_conversational(example: Row) -> bool:
    """Whether the row's texts are lists of messages with roles instead of plain texts."""
    return any(_is_talk(example.get(key), "role") for key in _TALKS)


def is_conversational_from_value(example: Row) -> bool:
    """Whether the row has `conversations` of {"from": ..., "value": ...}."""
    return _is_talk(example.get("conversations"), "from", "value")


def maybe_convert_to_chatml(example: Row) -> dict[str, Any]:
    """Returns the row with `conversations` ("from", "value") replaced by `messages` ("role", "content").

    Role names are kept. The input row is not changed, unlike in TRL.
    """
    new = {"from": "role", "value": "content"}
    made = dict(example)
    for key in _WITH_CONVERSATIONS:
        if isinstance(made.get(key), list):
            made[key] = [
                {new.get(k, k): v for k, v in message.items()} if isinstance(message, Mapping) else message
                for message in made[key]
            ]
    if "conversations" in made:
        made["messages"] = made.pop("conversations")
    return made


def apply_chat_template(
    example: Row, processing_class: Any, tools: list[Any] | None = None, **template_kwargs: Any
) -> dict[str, str]:
    """Renders the row's messages: `messages` to `text`; `prompt` and `completion` each to a text.

    The prompt ends where the two texts diverge: a template may write more after a prompt than inside a conversation.

    Args:
        example: a row with `messages`, `prompt`, or `prompt` and `completion`.
        processing_class: an object with `apply_chat_template`.
        tools: tools that the template announces.
        template_kwargs: further variables of the template, in addition to the row's `chat_template_kwargs`.

    Raises:
        DataError: the row has other columns of messages, or no answer can follow the last turn of its prompt.
    """
    found = set(_TALKS) & example.keys()
    if found not in _READ:
        raise DataError(
            f"apply_chat_template takes rows with messages, prompt, or prompt and completion; this one has "
            f"{', '.join(sorted(found)) or 'none of them'}.",
            fix="rows with chosen and rejected answers are for preference training: keep TRL for it",
        )
    options = {**example.get("chat_template_kwargs", {}), **template_kwargs, "tools": tools or None, "tokenize": False}

    def text(messages: Any, **how: Any) -> str:
        return str(processing_class.apply_chat_template(messages, **options, **how))

    if "messages" in example:
        return {"text": text(example["messages"])}
    asks = _asks(example["prompt"])
    prompt = text(example["prompt"], add_generation_prompt=asks, continue_final_message=not asks)
    if "completion" not in example:
        return {"prompt": prompt}
    whole = text([*example["prompt"], *example["completion"]])
    prompt = os.path.commonprefix([prompt, whole])  # noqa: RUF071 - by characters, as it does
    return {"prompt": prompt, "completion": whole[len(prompt) :]}


def maybe_apply_chat_template(
    example: Row, processing_class: Any, tools: list[Any] | None = None, **template_kwargs: Any
) -> dict[str, Any]:
    """`apply_chat_template` for conversational rows; a copy of any other row."""
    if is_conversational(example):
        return apply_chat_template(example, processing_class, tools, **template_kwargs)
    return dict(example)


def _asks(prompt: Any) -> bool:
    """Whether a new answer follows the prompt; otherwise its last turn is continued."""
    role = prompt[-1]["role"]
    if role not in ("user", "tool", "assistant"):
        raise DataError(f"A prompt ends with a turn of {role!r}.", fix="end it with a turn of the user")
    return bool(role != "assistant")


def _is_talk(value: Any, *keys: str) -> bool:
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and all(k in value[0] for k in keys)
    )
