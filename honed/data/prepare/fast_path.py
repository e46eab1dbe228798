"""The fast path for plain rows: directly from texts to columns, without an object per row, piece or turn.

    contents (Hi, Hello!)   outline   | ids | [0]<|im_end|>\n | ids | [1]<|im_end|> | ids |     weights 0 0 0 1 0

A row takes it if it contains only texts (`plain_rows.py`), the view of its shape is known (`shapes.py`) and the ledger
has nothing to note about it. All others take the usual path, as do rows that are too long, train nothing, or already
end with the EOS token (ignoring white space).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from honed.data.encode.render import Renderer
from honed.data.example import Conversation, Source
from honed.data.prepare.kept import KeptRows
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.plain_rows import PlainRows, Shape, example_of
from honed.data.read.messages import PLAIN_ROLES
from honed.data.read.sources import SourcedRow
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.shapes import Segments
from honed.data.templates.view import View

_NOWHERE = Source(file="", row=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """The only view of a shape, as parts that are encoded separately.

    Attributes:
        fixed: the ids of each part, int32; None for a part that contains texts of the row.
        filled: for each None, a format string with `%s` for the row's texts, and the range of texts [first, end).
        weights: the loss weight of each part.
        ends: whether a trained turn ends with the part.
        opens: whether the first part is the tokenizer's BOS.
        closes: whether the last part is the EOS that `render` adds.
    """

    fixed: list[np.ndarray | None]
    filled: list[tuple[str, int, int]]
    weights: list[float]
    ends: list[bool]
    opens: bool
    closes: bool


class FastPath:
    """Renders the rows of a chunk that can take the fast path; `renderer` is the usual path."""

    def __init__(self, renderer: Renderer, options: PrepareOptions) -> None:
        self._renderer, self._options = renderer, options
        self._plain = PlainRows(options)
        self._outlines: dict[Shape, Outline | None] = {}
        template = renderer.template
        self._apart = template.treated_apart if isinstance(template, JinjaTemplate) else None

    def __call__(self, chunk: Sequence[SourcedRow]) -> tuple[KeptRows, np.ndarray, int]:
        """Returns the rows that took this path; whether each row did, bool (rows,); how many have their own BOS."""
        taken = np.zeros(len(chunk), dtype=bool)
        places, outlines, texts = self._read(chunk)
        if not places:
            return KeptRows.of([]), taken, 0
        laid = _Laid.of(outlines, self._renderer.encoder(texts))
        laid, brings = laid.with_one_opening(self._renderer.opening)
        good = laid.good(self._options.longest_document, self._renderer.eos)
        places = np.flatnonzero(good).tolist() if len(places) == len(chunk) else np.array(places)[good].tolist()
        taken[places] = True
        return laid.columns(good, [chunk[n][0] for n in places]), taken, int(np.count_nonzero(brings & good))

    def _read(self, chunk: Sequence[SourcedRow]) -> tuple[list[int], list[Outline], list[str]]:
        """Returns the rows that may take this path, their outlines, and their texts to encode."""
        places: list[int] = []
        outlines: list[Outline] = []
        texts: list[str] = []
        for place, (_, row) in enumerate(chunk):
            if (plain := self._plain(row)) is None:
                continue
            shape, contents = plain
            if shape not in self._outlines:
                self._learn(shape, contents)
            outline = self._outlines.get(shape)
            if outline is None or (type(shape) is tuple and self._is_apart(contents)):
                continue
            if outline.closes and self._renderer.ends_with_eos(contents[-1]):
                continue
            places.append(place)
            outlines.append(outline)
            texts.extend([text % contents[first:end] for text, first, end in outline.filled])
        return places, outlines, texts

    def _is_apart(self, contents: tuple[str, ...]) -> bool:
        return self._apart is None or any(map(self._apart.search, contents))

    def _learn(self, shape: Shape, contents: tuple[str, ...]) -> None:
        """Finds the outline of a shape, once it is known whether it has one."""
        example = example_of(shape, contents, _NOWHERE)
        if self._renderer.puts_space_before:
            self._outlines[shape] = None
        elif not isinstance(example, Conversation):
            [view] = self._renderer.plan(example)
            self._outlines[shape] = self._outline(view, [(n,) for n in range(len(view.pieces))])
        elif self._apart is None or "assistant" not in shape or not PLAIN_ROLES.issuperset(shape):
            self._outlines[shape] = None
        elif not self._is_apart(contents):
            settled, form = self._renderer.form(example)
            if settled:
                single = form is not None and len(form.views) == 1
                self._outlines[shape] = self._outline(*form.views[0]) if form and single else None

    def _outline(self, view: View, segments: Sequence[Segments]) -> Outline | None:
        """Returns a view's outline; None if rows must be checked one by one (see `View.checks`, `Renderer.opening`)."""
        opens = view.add_special_tokens and len(self._renderer.opening) > 0
        if any(count > 1 for count in view.checks) or (opens and len(self._renderer.opening) > 1):
            return None
        renderer, encode = self._renderer, self._renderer.encoder
        last = {piece.turn: n for n, piece in enumerate(view.pieces)}
        parts: list[tuple[np.ndarray | None, float, bool]] = []
        filled = []
        if opens:
            parts.append((renderer.opening, view.pieces[0].weight, False))
        for number, (piece, own) in enumerate(zip(view.pieces, segments, strict=True)):
            contents = [segment for segment in own if isinstance(segment, int)]
            ids = None if contents else encode([piece.text])[0]
            if ids is not None and not len(ids):
                continue
            if contents:
                text = "".join("%s" if isinstance(segment, int) else segment.replace("%", "%%") for segment in own)
                filled.append((text, contents[0], contents[-1] + 1))
            parts.append((ids, piece.weight, piece.turn is not None and last[piece.turn] == number))
        closes = view.ends_open and renderer.eos is not None
        if closes:
            ids, weight, ends = parts[-1]
            parts[-1] = ids, weight, False
            parts.append((np.array([renderer.eos], dtype=np.int32), weight, ends))
        fixed, weights, all_ends = map(list, zip(*parts, strict=True))
        return Outline(fixed=fixed, filled=filled, weights=weights, ends=all_ends, opens=opens, closes=closes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Laid:
    """The concatenated parts of many rows.

    Attributes:
        ids: int32 (T,).
        lengths, weights, ends: per part; int64, float32, bool (parts,).
        counts: the number of parts per row, int64 (rows,).
        opens, closes: whether BOS was added before the row's texts, and EOS after them; bool (rows,).
    """

    ids: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray
    ends: np.ndarray
    counts: np.ndarray
    opens: np.ndarray
    closes: np.ndarray

    @classmethod
    def of(cls, outlines: Sequence[Outline], codes: Sequence[np.ndarray]) -> _Laid:
        own = iter(codes)
        parts = [next(own) if ids is None else ids for outline in outlines for ids in outline.fixed]
        return cls(
            ids=np.concatenate(parts),
            lengths=np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)),
            weights=np.array([weight for outline in outlines for weight in outline.weights], dtype=np.float32),
            ends=np.array([end for outline in outlines for end in outline.ends], dtype=bool),
            counts=np.array([len(outline.fixed) for outline in outlines], dtype=np.int64),
            opens=np.array([outline.opens for outline in outlines], dtype=bool),
            closes=np.array([outline.closes for outline in outlines], dtype=bool),
        )

    def with_one_opening(self, opening: np.ndarray) -> tuple[_Laid, np.ndarray]:
        """Removes the opening, one token, before texts that begin with it; also returns which do, bool (rows,)."""
        brings = np.zeros(len(self.counts), dtype=bool)
        first = np.cumsum(self.counts) - self.counts
        rows = np.flatnonzero(self.opens)
        rows = rows[self.lengths[first[rows] + 1] > 0]
        starts = (np.cumsum(self.lengths) - self.lengths)[first[rows] + 1]
        brings[rows] = np.isin(self.ids[starts], opening)
        if not brings.any():
            return self, brings
        parts = np.ones(len(self.lengths), dtype=bool)
        parts[first[brings]] = False
        one = self._of_parts(parts, counts=self.counts - brings, opens=self.opens & ~brings, closes=self.closes)
        return one, brings

    def _of_parts(self, parts: np.ndarray, **of_rows: np.ndarray) -> _Laid:
        """Selects these parts, bool (parts,)."""
        return _Laid(
            ids=self.ids[np.repeat(parts, self.lengths)],
            lengths=self.lengths[parts],
            weights=self.weights[parts],
            ends=self.ends[parts],
            **of_rows,
        )

    def good(self, limit: int | None, eos: int | None) -> np.ndarray:
        """Whether each row is trained unchanged and has no empty part; bool (rows,)."""
        first = np.cumsum(self.counts) - self.counts
        trained = np.add.reduceat(np.where(self.weights != 0, self.lengths, 0), first) - (self.weights[first] != 0)
        good = (np.minimum.reduceat(self.lengths, first) > 0) & (trained > 0)
        if limit is not None:
            good &= np.add.reduceat(self.lengths, first) <= limit
        before_last = np.cumsum(self.lengths)[first + self.counts - 1] - 2
        return good & ~(self.closes & (self.ids[before_last] == eos))

    def columns(self, good: np.ndarray, sources: Sequence[Source]) -> KeptRows:
        """Returns the good rows."""
        if not good.all():
            chosen = self._of_parts(
                np.repeat(good, self.counts),
                counts=self.counts[good],
                opens=self.opens[good],
                closes=self.closes[good],
            )
            return chosen.columns(good[good], sources) if len(sources) else KeptRows.of([])
        first = np.cumsum(self.counts) - self.counts
        lengths = np.add.reduceat(self.lengths, first)
        weights = np.repeat(self.weights, self.lengths)
        weights[np.cumsum(lengths) - lengths] = 0.0
        names = {name: n for n, name in enumerate(dict.fromkeys(source.file for source in sources))}
        return KeptRows(
            input_ids=self.ids,
            weights=weights,
            lengths=lengths,
            documents=np.ones(len(lengths), dtype=np.int64),
            stops=self.ids[np.cumsum(self.lengths)[self.ends] - 1],
            turns=np.add.reduceat(self.ends, first, dtype=np.int64),
            divided=np.zeros(len(lengths), dtype=bool),
            file=np.array([names[source.file] for source in sources], dtype=np.int64),
            number=np.array([source.row for source in sources], dtype=np.int64),
            names=tuple(names),
            cuts={},
        )
