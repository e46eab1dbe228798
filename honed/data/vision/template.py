"""Conversations with images: where each image goes in the text, and the chat templates that print them.

Rows place images in four ways, which all result in the same messages:

    {"type": "image", "image": "cat.png"}                     a part that contains its image
    {"type": "image"} ...             images: ["cat.png"]     parts filled from the column, in order (or by `index`)
    "<image>\\nWhat is this?"          images: ["cat.png"]     LLaVA's form: as many marks as images
    "What is this?"                   images: ["cat.png"]     no marks: images precede the first question

In a message's content an image is one reserved character (`IMAGE`), so all text handling (control tokens, probes)
works for images, too. The template receives transformers' typed parts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from honed.data.encode.render import opening_ids
from honed.data.example import Conversation, Message, RowError
from honed.data.mix.mixture import as_mixture
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import tokenizer_with_template
from honed.data.read.formats import LISTS_OF_MESSAGES
from honed.data.read.sources import read_rows
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.view import Piece, View
from honed.errors import TemplateError
from honed.quantities import counted

_FIRST_ROWS = 100
IMAGE = "\U0001fffe"  # a noncharacter, reserved by Unicode for internal use
MARK = "<image>"  # used by LLaVA and LLaMA-Factory
_MARK_AND_LINE_ENDS = re.compile(rf"\n*{MARK}\n*")  # templates put their own separator next to an image
_HOLDERS = ("image", "image_url", "path", "url")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionMessage(Message):
    """A message whose content may contain `IMAGE`; templates receive its parts."""

    @classmethod
    def of(cls, message: Message, content: str | None = None) -> VisionMessage:
        """Converts a message, with another content if given."""
        return cls(
            role=message.role,
            content=message.content if content is None else content,
            train=message.train,
            weight=message.weight,
            extra=message.extra,
        )

    def as_template_input(self) -> dict[str, Any]:
        """The dict that chat templates expect, with its content as typed parts."""
        # not super(): slots create a second class, for which it would fail
        return {**Message.as_template_input(self), "content": list(_typed_parts(self.content))}


def _typed_parts(content: str) -> Iterator[dict[str, str]]:
    for number, text in enumerate(content.split(IMAGE)):
        if number:
            yield {"type": "image"}
        if text:
            yield {"type": "text", "text": text}


def shown(conversation: Conversation) -> tuple[Conversation, tuple[Any, ...]]:
    """The conversation with `VisionMessage`s, and its images in display order.

    Raises:
        RowError: numbers of marks and images differ, an answer contains an image, or there is video or audio.
    """
    messages = conversation.messages
    if any(IMAGE in message.content for message in messages):
        raise RowError("text is not valid Unicode", "it holds the noncharacter U+1FFFE")
    if any(message.parts for message in messages):
        contents, values = _filled(conversation)
    elif conversation.images:
        contents, values = _marked(conversation), list(conversation.images)
    else:
        contents, values = [message.content for message in messages], []
    made = [VisionMessage.of(m, content) for m, content in zip(messages, contents, strict=True)]
    for number, message in enumerate(made, start=1):
        if message.role == "assistant" and IMAGE in message.content:
            raise RowError("image in an answer", f"message {number}: these models see images, and write text")
    return replace(conversation, messages=tuple(made), images=()), tuple(values)


def _filled(conversation: Conversation) -> tuple[list[str], list[Any]]:
    """Contents and images of messages with parts; parts without their own image take one from the column."""
    column, used, values = conversation.images, set[int](), list[Any]()

    def next_image(part: Mapping[str, Any]) -> Any:
        own = next((part[key] for key in _HOLDERS if part.get(key) is not None), None)
        if own is not None:
            return own["url"] if isinstance(own, Mapping) and "url" in own else own
        index = part.get("index")
        number = index if isinstance(index, int) else len(used)
        if not 0 <= number < len(column):
            raise RowError(
                "images and their marks differ", f"an image part, and {counted(len(column), 'image')} in the row"
            )
        used.add(number)
        return column[number]

    contents = []
    for message in conversation.messages:
        texts = [message.content] if not message.parts else []
        for part in message.parts:
            kind = part["type"]
            if "image" in kind:
                values.append(next_image(part))
            elif "text" not in kind and "video" not in kind and "audio" not in kind:
                continue  # reasoning, which already has a key of its own
            texts.append(IMAGE if "image" in kind else _text_of(part))
        contents.append("".join(texts))
    if len(used) < len(column) and not (not used and _same(column, values)):
        raise RowError(
            "images and their marks differ",
            f"{counted(len(column), 'image')}, {counted(len(used), 'part')} without their own",
        )
    return contents, values


def _same(column: Sequence[Any], own: Sequence[Any]) -> bool:
    """Whether the column repeats the images that the parts hold, in order; arrays only if they are the same object."""
    pairs = list(zip(column, own, strict=False))
    return len(column) == len(own) and all(a is b or (not hasattr(a, "shape") and a == b) for a, b in pairs)


def _text_of(part: Mapping[str, Any]) -> str:
    if not isinstance(part.get("text"), str):
        raise RowError("video or audio", f"a part of type {part['type']!r}: only images can be shown")
    return str(part["text"])


def _marked(conversation: Conversation) -> list[str]:
    """Contents with LLaVA's marks replaced by images; without marks, all images precede the first question."""
    contents = [message.content for message in conversation.messages]
    asked = [n for n, message in enumerate(conversation.messages) if message.role != "assistant"]
    marks, images = sum(contents[n].count(MARK) for n in asked), len(conversation.images)
    if marks == images:
        for n in asked:
            contents[n] = _MARK_AND_LINE_ENDS.sub(IMAGE, contents[n])
        return contents
    first = next((n for n in asked if conversation.messages[n].role == "user"), None)
    if marks or first is None:
        raise RowError(
            "images and their marks differ",
            f"{counted(images, 'image')}, {counted(marks, 'time')} {MARK} in the questions",
        )
    contents[first] = IMAGE * images + contents[first]
    return contents


def shows_images(data: Any) -> bool:
    """Whether one of the first rows (of each source) has an image; rows that can be read only once are not checked.

    Raises:
        DataError: a file is missing, empty or malformed.
    """
    parts = [part.data for part in as_mixture(data).parts]
    again = [part for part in parts if isinstance(part, (str, Path, Sequence)) or hasattr(part, "column_names")]
    return any(_names_image(row) for part in again for _, row in islice(read_rows(part), _FIRST_ROWS))


def _names_image(row: Any) -> bool:
    if not isinstance(row, Mapping):
        return False
    lists = [row[key] for key in LISTS_OF_MESSAGES if isinstance(row.get(key), (list, tuple))]
    contents = [m.get("content") for turns in lists for m in turns if isinstance(m, Mapping)]
    parts = [part for content in contents if isinstance(content, (list, tuple)) for part in content]
    typed = any(isinstance(part, Mapping) and "image" in str(part.get("type")) for part in parts)
    return typed or any(row.get(key) for key in ("images", "image"))


class VisionTemplate(JinjaTemplate):
    """A processor's chat template: `JinjaTemplate` for typed parts, with BOS if serving adds it.

    In `processor.apply_chat_template(..., tokenize=True)`, the tokenizer adds BOS to a text that does not begin with it
    (a tokenizer's own `apply_chat_template` never does), so such texts are trained with BOS, too.

    Args:
        processor: a transformers processor with a chat template, or a tokenizer with one.
        options: template, its arguments, and which turns are trained.

    Raises:
        TemplateError: there is no chat template that supports images.
    """

    def __init__(self, processor: Any, options: PrepareOptions) -> None:
        if options.template == "plain":
            raise TemplateError("template=plain cannot show images.", fix="leave it out, or name a Jinja file")
        tokenizer = copy.copy(getattr(processor, "tokenizer", processor))
        tokenizer.chat_template = getattr(processor, "chat_template", None) or tokenizer.chat_template
        if options.template != "auto":
            tokenizer = tokenizer_with_template(tokenizer, options.template)
        super().__init__(tokenizer, arguments=options.template_arguments, masks=options.masks())
        self.chat_template = tokenizer.chat_template
        self._bos = tokenizer.bos_token if len(opening_ids(tokenizer)) else None

    def views(self, conversation: Conversation, *, train_on: str, apart: bool = False) -> list[View]:
        messages = tuple(map(_as_vision_message, conversation.messages))
        views = super().views(replace(conversation, messages=messages), train_on=train_on, apart=apart)
        return [replace(view, add_special_tokens=self._lacks_bos(view.text)) for view in views]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[Piece, ...]:
        pieces = super().prompt(list(map(_as_vision_message, messages)), tools)
        lacks = self._lacks_bos("".join(piece.text for piece in pieces))
        return (Piece(text=str(self._bos)), *pieces) if lacks else pieces

    def read_arguments(self, conversation: Conversation) -> dict[str, Any]:
        """The variables that the template reads; a processor takes others for its own options."""
        every = {**self.arguments, **conversation.template_arguments}
        return {key: value for key, value in every.items() if key in str(self.chat_template)}

    def _lacks_bos(self, text: str) -> bool:
        return self._bos is not None and not text.startswith(self._bos)


def _as_vision_message(message: Message) -> Message:
    # messages with images come from `shown`; `JinjaTemplate` refuses any other
    return message if isinstance(message, VisionMessage) or message.parts else VisionMessage.of(message)
