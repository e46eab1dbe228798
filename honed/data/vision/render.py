"""Renders rows with images as ids and loss weights, expanding each image's placeholder as the processor does.

    <|im_start|>user\\n<|image_pad|>What?<|im_end|>...    the template's text: one placeholder per image
    <|im_start|>user\\n<|image_pad|><|image_pad|>...What? what the tokenizer gets, in training as in serving

The number of tokens per image depends on its size and on the processor, so the processor is called once per set of
image sizes. Placeholders are never trained and never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from honed.data.encode.render import Rendered, Renderer
from honed.data.example import Conversation, Example, RowError, Source
from honed.data.ledger import Ledger
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.reader import RowReader
from honed.data.read.formats import LISTS_OF_MESSAGES, read_example
from honed.data.read.sources import SourcedRow
from honed.data.templates.view import Piece, View, any_of, special_tokens
from honed.data.vision.images import FromDataSet, ImageRef, image_ref, load
from honed.data.vision.template import IMAGE, VisionTemplate, shown
from honed.errors import DataError, TemplateError

_NOWHERE = Source(file="dataset", row=0)
_MOST_SIZES = 4096  # cached expansions of a few kilobytes each


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionView(View):
    """A view and its images, in order."""

    images: tuple[ImageRef, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionRendered(Rendered):
    """A rendered view and its images, in order."""

    images: tuple[ImageRef, ...] = ()


class Expansions:
    """The texts with which a processor replaces each image's placeholder.

    Args:
        processor: a transformers processor for images.

    Raises:
        DataError: the processor has no placeholder for images.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._known: dict[tuple[tuple[int, int], ...], list[str]] = {}
        self.placeholder: str = getattr(processor, "image_token", None) or ""
        if not self.placeholder:
            raise DataError(
                f"{type(processor).__name__} has no `image_token`, so honed cannot tell where images are in its text.",
                fix="pass a data_collator of your own",
            )

    def __call__(self, images: Sequence[Any]) -> list[str]:
        """Returns a text for each of these PIL images of one row."""
        sizes = tuple(image.size for image in images)
        if images and sizes not in self._known:
            if len(self._known) >= _MOST_SIZES:
                self._known.clear()
            self._known[sizes] = self._ask(images)
        return self._known[sizes] if images else []

    def _ask(self, images: Sequence[Any]) -> list[str]:
        text = " ".join([self.placeholder] * len(images))
        try:
            seen = self._processor(text=[text], images=[list(images)], return_text_replacement_offsets=True)
        except Exception as error:  # image processors raise different types
            raise RowError("the processor refuses the image", f"{type(error).__name__}: {error}") from None
        [told] = seen.get("text_replacement_offsets") or [[]]
        found = [entry["replacement"] for entry in told if entry["type"] == "image"]
        if len(found) != len(images):
            raise DataError(
                f"{type(self._processor).__name__} does not say how it expands the placeholders of images.",
                fix="pass a data_collator of your own",
            )
        return found


class VisionRenderer(Renderer):
    """Renders conversations with images.

    Args:
        processor: a transformers processor, whose tokenizer is used.
        template: a template for the same processor.
        train_on: see `PrepareOptions.train_on`.
        image_folder: see `image_ref`.
        max_pixels: see `ImageRef`.
        data_set: a dataset on disk, and a function from its row to the row's images: these are read again each time
            they are needed, so that they are never all in memory.
    """

    def __init__(
        self,
        processor: Any,
        template: VisionTemplate,
        *,
        train_on: str = "assistant",
        image_folder: Path | None = None,
        max_pixels: int | None = None,
        data_set: tuple[Any, Callable[[Any], tuple[Any, ...]]] | None = None,
    ) -> None:
        super().__init__(processor.tokenizer, template, train_on=train_on)
        self._processor, self._template, self._folder, self._data_set = processor, template, image_folder, data_set
        self._max_pixels = max_pixels
        self._expansions = Expansions(processor)
        own = {self._expansions.placeholder, getattr(processor.tokenizer, "image_token", None) or ""}
        spelled = sorted(own - {"", *special_tokens(processor.tokenizer)})
        self._unspeakable = any_of(spelled)
        self._proven: set[bool] = set()  # for rows with images, for rows without

    def plan(self, example: Example, *, apart: bool = False) -> list[View]:
        if not isinstance(example, Conversation):
            return super().plan(example, apart=apart)
        conversation, values = shown(example)
        self._need_no_placeholders(conversation)
        refs = [self._ref(example, number, value) for number, value in enumerate(values)]
        images = [load(ref) for ref in refs]
        views: list[View] = [
            self._seen(view, conversation, refs, images) for view in super().plan(conversation, apart=apart)
        ]
        if bool(refs) not in self._proven:
            self._prove(conversation, views[0], images)
            self._proven.add(bool(refs))
        return views

    def _ref(self, example: Conversation, number: int, value: Any) -> ImageRef:
        ref = replace(image_ref(value, example.source, self._folder), max_pixels=self._max_pixels)
        if self._data_set is None or isinstance(ref.value, Path):  # a path needs little memory
            return ref
        rows, read = self._data_set
        return replace(ref, value=FromDataSet(rows, example.source.row - 1, number, read))

    def _need_no_placeholders(self, conversation: Conversation) -> None:
        """Refuses rows that spell a placeholder which is not a special token, so that it cannot be plain text."""
        for message in conversation.messages:
            if found := self._unspeakable.search(message.content):
                raise RowError(
                    "the text spells the placeholder of images",
                    f"{found[0]}, which is not a special token of this tokenizer, so it cannot be encoded as text",
                )

    def _seen(self, view: View, conversation: Conversation, refs: list[ImageRef], images: list[Any]) -> VisionView:
        """Returns the view with its placeholders expanded."""
        token = self._expansions.placeholder
        count = sum(piece.text.count(token) for piece in view.pieces if not piece.literal)
        trained = [piece.turn + 1 for piece in view.pieces if piece.turn is not None]
        ends = {len(conversation.messages), max(trained, default=0)}  # a view may end with its last trained turn
        expected = [sum(m.content.count(IMAGE) for m in conversation.messages[:end]) for end in sorted(ends)]
        if count not in expected:
            raise RowError("the chat template does not show every image", f"{count} of {max(expected)}")
        texts = iter(self._expansions(images[:count]))
        pieces = tuple(piece if piece.literal else _expanded(piece, token, texts) for piece in view.pieces)
        given = {f.name: getattr(view, f.name) for f in fields(View)}
        return VisionView(**{**given, "pieces": pieces}, images=tuple(refs[:count]))

    def _prove(self, conversation: Conversation, view: View, images: list[Any]) -> None:
        """Checks that the first trained turn's prompt is what `processor.apply_chat_template` produces at inference.

        Raises:
            TemplateError: it differs.
        """
        first = next((n for n, piece in enumerate(view.pieces) if piece.turn is not None), 0)
        if not first or view.pieces[first].head or any(piece.literal for piece in view.pieces[:first]):
            return  # no turn, or one that is not served
        served = self._served(conversation, int(view.pieces[first].turn or 0), images)
        own = self.prompt_ids(view.pieces[:first], opened=view.add_special_tokens)
        if own != served:
            raise TemplateError(
                f"What {type(self._processor).__name__} feeds at inference is not what would be trained: "
                f"{self.tokenizer.decode(served)[:200]!r} and {self.tokenizer.decode(own)[:200]!r}.",
                fix="pass a data_collator of your own",
            )

    def _served(self, conversation: Conversation, number: int, images: list[Any]) -> list[int]:
        """Returns the processor's own ids for the prompt of message `number`."""
        left = iter(images)
        messages = [message.as_template_input() for message in conversation.messages[:number]]
        for part in (part for message in messages for part in message["content"] if part["type"] == "image"):
            part["image"] = next(left)
        served = self._processor.apply_chat_template(
            messages,
            chat_template=self._template.chat_template,
            tools=list(conversation.tools) or None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **self._template.read_arguments(conversation),
        )
        return list(served["input_ids"][0])

    def prompt_ids(self, pieces: Sequence[Piece], *, opened: bool = False) -> list[int]:
        """Returns the ids of a prompt, piece by piece as in training; `opened` puts the tokenizer's BOS before it."""
        ids = super().prompt_ids(pieces)
        return [*self.opening.tolist(), *ids] if opened else ids

    def _assemble(self, keyed: Any, *args: Any, **kwargs: Any) -> Rendered:
        rendered = super()._assemble(keyed, *args, **kwargs)
        images = keyed.view.images if isinstance(keyed.view, VisionView) else ()
        return VisionRendered(**{f.name: getattr(rendered, f.name) for f in fields(Rendered)}, images=images)


class VisionReader(RowReader):
    """Reads rows that may have images, as `RowReader` reads text rows."""

    def __init__(
        self,
        processor: Any,
        options: PrepareOptions,
        formatting_func: Any = None,
        *,
        image_folder: Path | None = None,
        max_pixels: int | None = None,
        data_set: Any = None,
    ) -> None:
        template = VisionTemplate(processor, options)
        super().__init__(processor.tokenizer, template, options, formatting_func)
        self._fast_path = None  # its columns have no images
        self._renderer: VisionRenderer = VisionRenderer(
            processor,
            template,
            train_on=options.train_on,
            image_folder=image_folder,
            max_pixels=max_pixels,
            data_set=None if data_set is None else (data_set, self._images_of),
        )

    def _images_of(self, row: Any) -> tuple[Any, ...]:
        row = row if self._formatting is None else self._formatting(row)
        example = read_example(row, _NOWHERE, self._reading, format=self._options.format)
        return shown(example)[1] if isinstance(example, Conversation) else ()

    def _planned(
        self, chunk: Sequence[SourcedRow], ledger: Ledger, *, first: bool
    ) -> Iterator[tuple[int, Example, list[View]]]:
        told, places = [], []
        for place, (source, row) in enumerate(chunk):
            if self._formatting is None and _shows_beside_text(row):
                ledger.drop(source, "images beside plain text", "images need messages that they belong to")
            else:
                told.append((source, row))
                places.append(place)
        for number, example, views in super()._planned(told, ledger, first=first and len(told) == len(chunk)):
            yield places[number], example, views


def _expanded(piece: Piece, placeholder: str, texts: Iterator[str]) -> Piece:
    """Returns the piece with its placeholders replaced; these are muted if the piece is trained."""
    before, *behind = piece.text.split(placeholder)
    if not behind:
        return piece
    whole, spans, moves = before, list[tuple[int, int]](), list[tuple[int, int]]()
    position = len(before)
    for rest, text in zip(behind, texts, strict=False):
        spans.append((len(whole), len(whole) + len(text)))
        position += len(placeholder)
        whole += text
        moves.append((position, len(whole) - position))  # what follows `position` has moved by this much
        whole, position = whole + rest, position + len(rest)

    def moved(border: int) -> int:
        return border + next((by for start, by in reversed(moves) if border >= start), 0)

    mutes = [(moved(a), moved(b)) for a, b in piece.mutes]
    return replace(piece, text=whole, head=moved(piece.head), mutes=(*mutes, *(spans if piece.weight else ())))


def _shows_beside_text(row: Any) -> bool:
    """Whether this is a row of plain text with images, which readers of text rows ignore."""
    if not isinstance(row, Mapping) or any(row.get(key) for key in (*LISTS_OF_MESSAGES, "instruction")):
        return False
    return any(row.get(key) for key in ("images", "image"))
