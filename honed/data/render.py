"""Example -> Rendered: ids and loss weights. The only maker of masks in the project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from honed.data.example import Conversation, Document, Example, PromptCompletion, Source, Tokens
from honed.data.template import Piece, Template, View
from honed.errors import DataError


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

    def render(self, examples: Sequence[Example]) -> list[list[Rendered]]:
        """For each example its views, in order; one view for all but conversations whose template rewrites history.

        Raises:
            RowError, TemplateError: see `Template.views`; plan rows one by one to know whose it was.
        """
        return self.encode([(example, self.plan(example)) for example in examples])

    def plan(self, example: Example, *, apart: bool = False) -> list[View]:
        """The texts that this example becomes. Cheap: nothing is encoded."""
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
        codes = self._encode_texts(planned)
        rendered = []
        for example, views in planned:
            if isinstance(example, Tokens):
                rendered.append([_from_tokens(example)])
            elif all(self._as_served(view, codes) for view in views):
                rendered.append([self._assemble(view, codes, example.source, len(views)) for view in views])
            else:
                apart = self.plan(example, apart=True)
                own = self._encode_texts([(example, apart)])
                rendered.append([self._assemble(view, own, example.source, len(apart)) for view in apart])
        return rendered

    def prompt_ids(self, pieces: Sequence[Piece]) -> list[int]:
        """Ids of a prompt, piece by piece as in training."""
        return [i for piece in pieces for i in self._ids([piece.text], special=False)[0]]

    def _encode_texts(self, planned: Sequence[tuple[Example, Sequence[View]]]) -> _Codes:
        plain: dict[str, list[int]] = {}
        special: dict[str, list[int]] = {}
        for _, views in planned:
            for view in views:
                for number, piece in enumerate(view.pieces):
                    (special if view.add_special_tokens and number == 0 else plain)[piece.text] = []
                for count in view.checks:
                    plain[_head(view, count)] = []
        for texts, with_special in ((plain, False), (special, True)):
            if texts:
                texts.update(zip(texts, self._ids(list(texts), special=with_special), strict=True))
        return _Codes(plain=plain, special=special)

    def _ids(self, texts: list[str], *, special: bool) -> list[list[int]]:
        coded: list[list[int]] = self.tokenizer(texts, add_special_tokens=special, return_attention_mask=False)[
            "input_ids"
        ]
        if not special:
            return coded
        # some tokenizers close every text with EOS; a prompt must stay open, and `_assemble` closes the rest itself
        return [ids[:-1] if ids and ids[-1] == self.eos else ids for ids in coded]

    def _as_served(self, view: View, codes: _Codes) -> bool:
        return all(
            codes.plain[_head(view, count)] == [i for piece in view.pieces[:count] for i in codes.plain[piece.text]]
            for count in view.checks
        )

    def _assemble(self, view: View, codes: _Codes, source: Source, views: int) -> Rendered:
        ids: list[int] = []
        weights: list[float] = []
        spans: dict[int, tuple[int, int]] = {}
        for number, piece in enumerate(view.pieces):
            own = (codes.special if view.add_special_tokens and number == 0 else codes.plain)[piece.text]
            if piece.turn is not None:
                first = spans.get(piece.turn, (len(ids), 0))[0]
                spans[piece.turn] = (first, len(ids) + len(own))
            ids += own
            weights += [piece.weight] * len(own)
        if view.ends_open and self.eos is not None and spans:
            last = max(spans)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Codes:
    """Texts with their ids, encoded without and with the tokenizer's own special tokens."""

    plain: dict[str, list[int]]
    special: dict[str, list[int]]


def _head(view: View, count: int) -> str:
    return "".join(piece.text for piece in view.pieces[:count])


def _from_tokens(example: Tokens) -> Rendered:
    weights = np.asarray(example.weights, dtype=np.float32)
    weights[:1] = 0.0
    return Rendered(input_ids=np.asarray(example.input_ids, dtype=np.int32), weights=weights, source=example.source)
