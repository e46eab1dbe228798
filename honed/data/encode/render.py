"""Example -> Rendered: ids and loss weights. The only module that creates loss masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from honed.data.encode.encode import Encoder
from honed.data.example import Conversation, Document, Example, PromptCompletion, RowError, Source, Tokens
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.shapes import Form
from honed.data.templates.view import Piece, Template, View, any_of, special_tokens
from honed.errors import DataError

# (text to put before it for encoding, the text, whether special tokens spelled in it are plain text)
_Key = tuple[str, str, bool]
_Codes = dict[_Key, np.ndarray]


class _Keyed(NamedTuple):
    """A view, the keys of its pieces, and for each of its checks the two lists of keys that must agree."""

    view: View
    keys: list[_Key]
    heads: list[tuple[list[_Key], list[_Key]]]

    def is_as_served(self, codes: _Codes) -> bool:
        """Whether inference would use the ids that are trained."""
        return all(np.array_equal(_joined(own, codes), _joined(head, codes)) for own, head in self.heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The tokens [start, end) of a trained turn; `stop` is the id of its last token."""

    start: int
    end: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Token ids with their loss weights.

    Attributes:
        input_ids: int32, shape (T,).
        weights: float32, shape (T,); `weights[t]` is the weight of predicting token t from those before it. The
            first is always 0, because nothing precedes it.
        turns: spans of the trained turns.
        views: the number of views into which this row's conversation was divided.
        brings_opening: whether the text itself begins with what the tokenizer puts before texts (BOS); none is added.
        brings_closing: whether the text itself ends with EOS and white space; none is added.
    """

    input_ids: np.ndarray
    weights: np.ndarray
    source: Source
    turns: tuple[Turn, ...] = ()
    views: int = 1
    brings_opening: bool = False
    brings_closing: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def trained(self) -> int:
        """The number of trained tokens."""
        return int(np.count_nonzero(self.weights))


class Renderer:
    """Renders examples with one template and one tokenizer.

    Args:
        tokenizer: a transformers tokenizer; it is called with lists of texts, which fast tokenizers encode in parallel.
        template: the template for conversations; None if there are none.
        train_on: see `PrepareOptions.train_on`.

    Attributes:
        opening: the ids that the tokenizer puts before a text, int32.
        puts_space_before: whether the tokenizer puts a space before every text.
    """

    def __init__(self, tokenizer: Any, template: Template | None, *, train_on: str = "assistant") -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.train_on = train_on
        self.eos = tokenizer.eos_token_id
        self.encoder = Encoder(tokenizer)
        self.opening = opening_ids(tokenizer)
        newline, both, letter = self.encoder(["\n", "\na", "a"])
        self.puts_space_before = not np.array_equal(both, np.concatenate([newline, letter]))
        self._special = special_tokens(tokenizer)
        self._control = any_of(self._special)

    def render(self, examples: Sequence[Example]) -> list[list[Rendered]]:
        """Returns each example's views, in order; one view, except for conversations whose template rewrites history.

        Raises:
            RowError, TemplateError: see `Template.views`; plan rows one by one to find the row.
        """
        return self.encode([(example, self.plan(example)) for example in examples])

    def plan(self, example: Example, *, apart: bool = False) -> list[View]:
        """Returns the texts of this example. Cheap: nothing is encoded.

        Raises:
            RowError: the template refuses it, nothing in it is trained, or it contains half of a surrogate pair.
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
                raise DataError(
                    "Conversations need a chat template.",
                    fix="set chat_template_path (in a recipe data.template) to a Jinja file, or template='plain'",
                )
            return self.template.views(example, train_on=mode_of(example, self.train_on), apart=apart)
        context = 1.0 if self.train_on == "all" else 0.0
        if isinstance(example, PromptCompletion):
            pieces = (Piece(text=example.prompt, weight=context), Piece(text=example.completion, weight=1.0, turn=0))
            return [View(pieces=pieces, ends_open=True, add_special_tokens=True)]
        if isinstance(example, Document):
            piece = Piece(text=example.text, weight=1.0, turn=0)
            return [View(pieces=(piece,), ends_open=True, add_special_tokens=True)]
        return []

    def form(self, conversation: Conversation) -> tuple[bool, Form | None]:
        """See `Shapes.form`; only Jinja templates have one."""
        if not isinstance(self.template, JinjaTemplate):
            return True, None
        return self.template.form(conversation, train_on=mode_of(conversation, self.train_on))

    def encode(self, planned: Sequence[tuple[Example, Sequence[View]]]) -> list[list[Rendered]]:
        """Encodes the views of many examples in a few calls of the tokenizer."""
        keyed = [[self._keyed(view) for view in views] for _, views in planned]
        codes = self._encode_texts([one for views in keyed for one in views])
        rendered = []
        for (example, _), views in zip(planned, keyed, strict=True):
            if isinstance(example, Tokens):
                rendered.append([_from_tokens(example)])
            elif all(one.is_as_served(codes) for one in views):
                rendered.append([self._assemble(one, codes, example.source, of=len(views)) for one in views])
            else:
                apart = [self._keyed(view) for view in self.plan(example, apart=True)]
                own = self._encode_texts(apart)
                rendered.append([self._assemble(one, own, example.source, of=len(apart)) for one in apart])
        return rendered

    def prompt_ids(self, pieces: Sequence[Piece]) -> list[int]:
        """Returns the ids of a prompt, piece by piece as in training."""
        keyed = self._keyed(View(pieces=tuple(pieces)))
        codes = self._encode_texts([keyed])
        return [i for key in keyed.keys for i in codes[key].tolist()]

    def spells_control_tokens(self, views: Sequence[View]) -> bool:
        """Whether the row's own text contains control tokens, which are encoded as plain text."""
        return any(self._is_text(piece) for view in views for piece in view.pieces if piece.literal)

    def _is_text(self, piece: Piece) -> bool:
        return piece.literal and self._control.search(piece.text) is not None

    def _keyed(self, view: View) -> _Keyed:
        keys = self._keys(view)
        # A single piece is already encoded as a whole.
        heads = [(keys[:count], self._head(view, count)) for count in view.checks if count > 1]
        return _Keyed(view, keys, heads)

    def _encode_texts(self, keyed: Sequence[_Keyed]) -> _Codes:
        wanted: dict[tuple[str, bool], dict[str, None]] = {}
        for view, keys, heads in keyed:
            served = [key for _, head in heads for key in head]
            for mark, text, literal in (*keys, *served, *_borders(view, keys)):
                wanted.setdefault((mark, literal), {})[text] = None
        codes: _Codes = {}
        for (mark, literal), texts in wanted.items():
            own = self._behind(mark, list(texts), literal)
            codes.update(zip(((mark, text, literal) for text in texts), own, strict=True))
        return codes

    def _keys(self, view: View) -> list[_Key]:
        marks = ["", *(self._mark(piece) for piece in view.pieces[:-1])]
        return [(mark, piece.text, self._is_text(piece)) for mark, piece in zip(marks, view.pieces, strict=True)]

    def _head(self, view: View, count: int) -> list[_Key]:
        """Returns the first pieces as inference encodes them: as a whole, except for literal parts."""
        runs: list[Piece] = []
        for piece in view.pieces[:count]:
            if runs and not self._is_text(piece) and not self._is_text(runs[-1]):
                runs[-1] = Piece(text=runs[-1].text + piece.text)
            else:
                runs.append(piece)
        return self._keys(View(pieces=tuple(runs)))

    def _mark(self, before: Piece) -> str:
        """Returns the text to put before the next piece, for tokenizers that put a space before texts; "" for none."""
        if not self.puts_space_before or not before.text:
            return ""
        if self._is_text(before):
            return "\n"
        return next((token for token in self._special if before.text.endswith(token)), "\n")

    def _as_text(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of texts whose special tokens are plain text."""
        coded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, split_special_tokens=True)
        # Fast tokenizers keep the last call's setting in their state.
        self.tokenizer([""], add_special_tokens=False, return_attention_mask=False)
        return [np.array(ids, dtype=np.int32) for ids in coded["input_ids"]]

    def _behind(self, mark: str, texts: list[str], literal: bool = False) -> list[np.ndarray]:
        encode = self._as_text if literal else self.encoder
        if not mark:
            return encode(texts)
        mark = "\n" if literal else mark  # a special token would be read as text too
        [head] = encode([mark])
        pairs = zip(encode(texts), encode([mark + text for text in texts]), strict=True)
        return [b[len(head) :] if np.array_equal(b[: len(head)], head) else a for a, b in pairs]

    def _opening_of(self, view: View, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, bool]:
        """Returns what to put before the view's ids, and whether they already have it: no text gets two BOS.

        The tokenizer's own EOS is omitted: a prompt must stay open, and `_assemble` closes the rest.
        """
        size = len(self.opening) if view.add_special_tokens else 0
        brings = size > 0 and np.array_equal(np.concatenate(parts)[:size], self.opening)
        return self.opening[: 0 if brings else size], brings

    def _assemble(self, keyed: _Keyed, codes: _Codes, source: Source, *, of: int) -> Rendered:
        """Joins the pieces with their weights, and adds BOS and EOS if no template writes them."""
        view, keys, _ = keyed
        parts = [codes[key] for key in keys]
        opening, brings = self._opening_of(view, parts)
        behind = self._behind_eos(view.pieces[-1].text, parts[-1]) if view.ends_open else 0
        if behind is None:
            parts.append(np.array([self.eos], dtype=np.int32))
        ids = np.concatenate([opening, *parts])
        weights = np.zeros(len(ids), dtype=np.float32)
        spans: dict[int, tuple[int, int]] = {}
        position = len(opening)
        behind_opening = len(self.opening) if view.add_special_tokens else 0
        for key, piece, part in zip(keys, view.pieces, parts, strict=False):
            end = position + len(part)
            if piece.weight:
                weights[position:end] = piece.weight
            if piece.turn is not None:
                head = _before(key, piece.head, codes) if piece.head else 0
                start = max(position + head, behind_opening)
                spans[piece.turn] = (spans.get(piece.turn, (start, 0))[0], end)
            if piece.mutes or piece.head:
                _mute(weights, position, piece, key, codes)
            position = end
        if view.ends_open and spans:
            last = max(spans)
            weights[position:] = next(piece.weight for piece in reversed(view.pieces) if piece.turn == last)
            spans[last] = (spans[last][0], len(ids) - (behind or 0))  # the turn ends where generation stops
        weights[:behind_opening] = view.pieces[0].weight
        weights[:1] = 0.0
        turns = tuple([Turn(start=a, end=b, stop=int(ids[b - 1])) for a, b in spans.values() if b > a])
        return Rendered(
            input_ids=ids,
            weights=weights,
            source=source,
            turns=turns,
            views=of,
            brings_opening=brings,
            brings_closing=bool(behind),
        )

    def _behind_eos(self, text: str, ids: np.ndarray) -> int | None:
        """Returns the number of white space ids after the EOS that ends the text; None if EOS must be added.

        `apply_chat_template` writes such texts ("...<|im_end|>\\n"). 0 if there is no EOS to add.
        """
        if self.eos is None or (len(ids) and ids[-1] == self.eos):
            return 0
        if not self.ends_with_eos(text) or not (found := np.flatnonzero(ids == self.eos)).size:
            return None
        behind = ids[found[-1] + 1 :]
        return None if self.tokenizer.decode(behind.tolist()).strip() else len(behind)

    def ends_with_eos(self, text: str) -> bool:
        """Whether a text spells EOS at its end, ignoring white space."""
        return self.eos is not None and text.rstrip().endswith(self.tokenizer.eos_token)


def mode_of(conversation: Conversation, train_on: str) -> str:
    """Resolves `train_on`: "completion" means "assistant" if the row separates question and answer, else "all"."""
    if train_on != "completion":
        return train_on
    return "assistant" if any(message.train is False for message in conversation.messages) else "all"


def opening_ids(tokenizer: Any) -> np.ndarray:
    """Returns the ids that the tokenizer puts before a text (BOS, or nothing), int32.

    Raises:
        DataError: it adds anything other than fixed tokens around the text.
    """
    texts = ["a", "b c", ""]
    with_own = [list(ids) for ids in tokenizer(texts, return_attention_mask=False)["input_ids"]]
    plain = [list(ids) for ids in tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]]
    around = len(with_own[0]) - len(plain[0])
    for n in range(around + 1):
        opening, closing = with_own[0][:n], with_own[0][n + len(plain[0]) :]
        if all(own == [*opening, *ids, *closing] for own, ids in zip(with_own, plain, strict=True)):
            return np.array(opening, dtype=np.int32)
    raise DataError(
        "The tokenizer changes a text's tokens when it adds its special ones.",
        fix="use one that adds them around the text",
    )


def _joined(keys: Sequence[_Key], codes: _Codes) -> np.ndarray:
    return np.concatenate([codes[key] for key in keys])


def _borders(view: View, keys: Sequence[_Key]) -> list[_Key]:
    """Returns each piece's text up to every border of a muted span, to find the border among the tokens."""
    if not any(piece.mutes or piece.head for piece in view.pieces):
        return []
    return [
        (mark, text[:n], plain)
        for (mark, text, plain), piece in zip(keys, view.pieces, strict=True)
        for stretch in ((0, piece.head), *piece.mutes)
        for n in stretch
    ]


def _mute(weights: np.ndarray, position: int, piece: Piece, key: _Key, codes: _Codes) -> None:
    """Sets weights to 0 inside a piece's muted spans; a token that crosses a border belongs to where it begins."""
    for start, end in ((0, piece.head), *piece.mutes):
        weights[position + _before(key, start, codes) : position + _before(key, end, codes)] = 0.0


def _before(key: _Key, border: int, codes: _Codes) -> int:
    """Returns how many tokens of a piece precede this character: those that the text cut there also begins with."""
    mark, text, plain = key
    ids, cut = codes[key], codes[mark, text[:border], plain]
    shorter = min(len(ids), len(cut))
    differ = np.flatnonzero(ids[:shorter] != cut[:shorter])
    return int(differ[0]) if len(differ) else shorter


def _from_tokens(example: Tokens) -> Rendered:
    weights = np.asarray(example.weights, dtype=np.float32)
    weights[:1] = 0.0
    return Rendered(input_ids=np.asarray(example.input_ids, dtype=np.int32), weights=weights, source=example.source)
