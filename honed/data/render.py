"""Example -> Rendered: ids and loss weights. The only maker of masks in the project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from honed.data.example import Conversation, Document, Example, PromptCompletion, Source, Tokens
from honed.data.formats import RowError
from honed.data.template import Piece, Template, View, special_tokens
from honed.errors import DataError

_Key = tuple[str | None, str]  # what a text is encoded behind (None: the tokenizer's own BOS), and the text


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The tokens [start, end) of a trained turn; `stop` is the id of its last token."""

    start: int
    end: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Token ids with a loss weight for each.

    Attributes:
        input_ids: int32, shape (T,).
        weights: float32, shape (T,); `weights[t]` is the weight of predicting token t from those before it. The
            first is always 0: nothing stands before it.
        turns: spans of the trained turns.
        views: into how many views this row's conversation was divided.
    """

    input_ids: np.ndarray
    weights: np.ndarray
    source: Source
    turns: tuple[Turn, ...] = ()
    views: int = 1

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def trained(self) -> int:
        """How many tokens are trained."""
        return int(np.count_nonzero(self.weights))


class Renderer:
    """Renders examples with one template and one tokenizer.

    Args:
        tokenizer: a transformers tokenizer; it is called with lists of texts, which fast tokenizers encode in parallel.
        template: for conversations; may be None where there are none.
        train_on: see `PrepareOptions.train_on`.
    """

    def __init__(self, tokenizer: Any, template: Template | None, *, train_on: str = "assistant") -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.train_on = train_on
        self.eos = tokenizer.eos_token_id
        self._closes = self.eos is not None and self._code(["a"], special=True)[0][-1:] == [self.eos]
        newline, both, letter = self._code(["\n", "\na", "a"])
        self._puts_space_before = both != newline + letter
        self._special = special_tokens(tokenizer)

    def render(self, examples: Sequence[Example]) -> list[list[Rendered]]:
        """For each example its views, in order; one view for all but conversations whose template rewrites history.

        Raises:
            RowError, TemplateError: see `Template.views`; plan rows one by one to know whose it was.
        """
        return self.encode([(example, self.plan(example)) for example in examples])

    def plan(self, example: Example, *, apart: bool = False) -> list[View]:
        """The texts that this example becomes. Cheap: nothing is encoded.

        Raises:
            RowError: the template refuses it, nothing in it is to be trained, or half of a surrogate pair is in it.
        """
        views = self._views(example, apart)
        try:
            for view in views:
                view.text.encode()
        except UnicodeEncodeError as error:
            raise RowError("text is not valid Unicode", str(error)) from None
        return views

    def _views(self, example: Example, apart: bool) -> list[View]:
        if isinstance(example, Conversation):
            if self.template is None:
                raise DataError("Conversations need a chat template.", fix="set data.template")
            return self.template.views(example, train_on=self._mode(example), apart=apart)
        context = 1.0 if self.train_on == "all" else 0.0
        if isinstance(example, PromptCompletion):
            pieces = (Piece(text=example.prompt, weight=context), Piece(text=example.completion, weight=1.0, turn=0))
            return [View(pieces=pieces, ends_open=True, add_special_tokens=True)]
        if isinstance(example, Document):
            piece = Piece(text=example.text, weight=1.0, turn=0)
            return [View(pieces=(piece,), ends_open=True, add_special_tokens=True)]
        return []

    def _mode(self, conversation: Conversation) -> str:
        if self.train_on != "completion":
            return self.train_on
        divided = any(message.train is False for message in conversation.messages)
        return "assistant" if divided else "all"

    def encode(self, planned: Sequence[tuple[Example, Sequence[View]]]) -> list[list[Rendered]]:
        """Encodes the views of many examples in few calls of the tokenizer."""
        codes = self._encode_texts([view for _, views in planned for view in views])
        rendered = []
        for example, views in planned:
            if isinstance(example, Tokens):
                rendered.append([_from_tokens(example)])
            elif all(self._as_served(view, codes) for view in views):
                rendered.append([self._assemble(view, codes, example.source, len(views)) for view in views])
            else:
                apart = self.plan(example, apart=True)
                own = self._encode_texts(apart)
                rendered.append([self._assemble(view, own, example.source, len(apart)) for view in apart])
        return rendered

    def prompt_ids(self, pieces: Sequence[Piece]) -> list[int]:
        """Ids of a prompt, piece by piece as in training."""
        view = View(pieces=tuple(pieces))
        codes = self._encode_texts([view])
        return [i for key in self._keys(view) for i in codes[key]]

    def _encode_texts(self, views: Sequence[View]) -> dict[_Key, list[int]]:
        keys = dict.fromkeys(key for view in views for key in self._keys(view))
        keys.update(dict.fromkeys(("", _head(view, count)) for view in views for count in view.checks))
        codes: dict[_Key, list[int]] = {}
        for mark in dict.fromkeys(mark for mark, _ in keys):
            texts = [text for own, text in keys if own == mark]
            codes.update(zip(((mark, text) for text in texts), self._behind(mark, texts), strict=True))
        return codes

    def _keys(self, view: View) -> list[_Key]:
        marks = [None if view.add_special_tokens else "", *(self._mark(piece.text) for piece in view.pieces[:-1])]
        return [(mark, piece.text) for mark, piece in zip(marks, view.pieces, strict=True)]

    def _mark(self, before: str) -> str:
        """Where the tokenizer puts a space before what it is given: what to encode the next piece behind instead."""
        if not self._puts_space_before or not before:
            return ""
        return next((token for token in self._special if before.endswith(token)), "\n")

    def _code(self, texts: list[str], *, special: bool = False) -> list[list[int]]:
        coded = self.tokenizer(texts, add_special_tokens=special, return_attention_mask=False)
        return [list(ids) for ids in coded["input_ids"]]

    def _behind(self, mark: str | None, texts: list[str]) -> list[list[int]]:
        plain = self._code(texts, special=mark is None)
        if mark is None and self._closes:  # it adds EOS, but a prompt must stay open; `_assemble` closes the rest
            return [ids[:-1] for ids in plain]
        if not mark:
            return plain
        [head] = self._code([mark])
        longer = self._code([mark + text for text in texts])
        return [b[len(head) :] if b[: len(head)] == head else a for a, b in zip(plain, longer, strict=True)]

    def _as_served(self, view: View, codes: dict[_Key, list[int]]) -> bool:
        keys = self._keys(view)
        return all(
            codes["", _head(view, count)] == [i for key in keys[:count] for i in codes[key]] for count in view.checks
        )

    def _assemble(self, view: View, codes: dict[_Key, list[int]], source: Source, views: int) -> Rendered:
        ids: list[int] = []
        weights: list[float] = []
        spans: dict[int, tuple[int, int]] = {}
        for key, piece in zip(self._keys(view), view.pieces, strict=True):
            own = codes[key]
            if piece.turn is not None:
                first = spans.get(piece.turn, (len(ids), 0))[0]
                spans[piece.turn] = (first, len(ids) + len(own))
            ids += own
            weights += [piece.weight] * len(own)
        if view.ends_open and self.eos is not None and spans:
            last = max(spans)
            if ids[-1:] != [self.eos]:  # the row's own text may end with it
                ids.append(self.eos)
                weights.append(1.0)
            spans[last] = (spans[last][0], len(ids))
        if weights:
            weights[0] = 0.0
        return Rendered(
            input_ids=np.asarray(ids, dtype=np.int32),
            weights=np.asarray(weights, dtype=np.float32),
            source=source,
            turns=tuple(Turn(start=a, end=b, stop=ids[b - 1]) for a, b in spans.values() if b > a),
            views=views,
        )


def _head(view: View, count: int) -> str:
    return "".join(piece.text for piece in view.pieces[:count])


def _from_tokens(example: Tokens) -> Rendered:
    weights = np.asarray(example.weights, dtype=np.float32)
    weights[:1] = 0.0
    return Rendered(input_ids=np.asarray(example.input_ids, dtype=np.int32), weights=weights, source=example.source)
