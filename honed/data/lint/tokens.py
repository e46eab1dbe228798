"""The part of a check that needs a tokenizer: the ledger of `prepare`, lengths, and stop tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from honed.data.batch.pack import pack_best_fit
from honed.data.encode.empty_reasoning import EmptyReasoning
from honed.data.encode.render import Rendered, Renderer
from honed.data.example import Example, RowError
from honed.data.ledger import Ledger
from honed.data.lint.borders import Borders
from honed.data.lint.kinds import Findings
from honed.data.prepare.kept import KeptRow
from honed.data.prepare.options import PrepareOptions, reading_of
from honed.data.prepare.prepare import make_template
from honed.data.prepare.reader import NOT_VERIFIED, Fitted, fit, in_one_line
from honed.data.prepare.spelled_end import spelled_ends, tail_of
from honed.data.templates.view import Template, View, special_tokens
from honed.data.vision.prepare import without_cuts
from honed.data.vision.render import VisionRenderer
from honed.data.vision.template import VisionTemplate
from honed.errors import TemplateError
from honed.quantities import counted


class TokenCheck:
    """Renders rows, applies the length policy and checks how trained turns end.

    Args:
        tokenizer: a transformers tokenizer, or a processor for rows with images.
        options: as for `prepare`.
        stop_ids: stop ids in the model's generation config, besides the tokenizer's EOS.
    """

    def __init__(self, tokenizer: Any, options: PrepareOptions, stop_ids: Sequence[int] = ()) -> None:
        template: Template | None
        if hasattr(tokenizer, "image_processor"):
            options, processor = without_cuts(options)[0], tokenizer
            template, tokenizer = VisionTemplate(processor, options), processor.tokenizer
            self.renderer: Renderer = VisionRenderer(processor, template, train_on=options.train_on)
        else:
            template = make_template(tokenizer, options)
            self.renderer = Renderer(tokenizer, template, train_on=options.train_on)
        self.tokenizer, self.options = tokenizer, options
        self.reading = reading_of(options, template)
        self.special = special_tokens(tokenizer)
        eos = tokenizer.eos_token_id
        self._stops = {*stop_ids, *(() if eos is None else (eos,))}
        self.special_ids = set(tokenizer.convert_tokens_to_ids(self.special))
        # Training would stop at the first overlong row; a check continues.
        self._policy = replace(options, overlong="drop") if options.overlong_policy == "error" else options
        self._empty_reasoning = EmptyReasoning(tokenizer)
        self.borders = Borders(tokenizer)
        self._lengths: list[int] = []  # of trained documents
        self._ends: dict[int, int] = {}
        self._spelled = spelled_ends(template, tokenizer)

    def plan(self, example: Example) -> list[View]:
        """Returns the texts of this example.

        Raises:
            RowError: it cannot be rendered.
        """
        try:
            return self.renderer.plan(example)
        except TemplateError as error:  # only this row; others may be fine
            raise RowError(NOT_VERIFIED, in_one_line(error)) from None

    def encode(self, planned: Sequence[tuple[Example, Sequence[View]]]) -> list[list[Rendered]]:
        """Encodes many examples as ids and masks."""
        return self.renderer.encode(planned)

    def settle(self, views: Sequence[Rendered], ledger: Ledger, findings: Findings) -> tuple[list[str], str]:
        """Adds a row to the ledger as `prepare` does; returns the kinds of its problems, and why it is dropped."""
        source = views[0].source
        fitted = fit(views, self._policy)
        faults = []
        if fitted.overlong:
            detail = f"{counted(fitted.longest, 'token')}, max_length {self.options.max_length:,}"
            findings.add("overlong", source, detail, subject=self._done_to(fitted))
            faults.append("overlong")
        if fitted.dropped:
            ledger.drop(source, fitted.dropped, counted(fitted.longest, "token"))
            if not fitted.overlong:
                findings.add("unusable", source, "no token of it is trained", subject=fitted.dropped)
                faults.append("unusable")
            return faults, fitted.dropped
        KeptRow(source=source, views=fitted.kept, cut=fitted.cut).count(ledger)
        self._count(fitted.kept, ledger)
        faults += self._check_ends(fitted.kept, findings) + self._check_reasoning(fitted.kept, findings)
        if any(map(self._begins_twice, fitted.kept)):
            findings.add("two_bos", source, f"begins with {self.tokenizer.bos_token * 2}")
            faults.append("two_bos")
        return faults, ""

    def _done_to(self, fitted: Fitted) -> str:
        if self.options.overlong_policy == "error":
            return "training stops at them"
        return fitted.cut[0].removeprefix("overlong: ").replace("dropped", "left out") if fitted.cut else "left out"

    def finish(self, ledger: Ledger) -> np.ndarray:
        """Completes the ledger; returns the tokens per packed row, whether the options pack or not."""
        for token, count in sorted(self._ends.items(), key=lambda item: -item[1]):
            ledger.stop_tokens[self.tokenizer.decode([token])] += count
        ledger.notes += ledger.end_notes()
        capacity = self.options.max_length
        if capacity is None:
            ledger.packed_rows = len(self._lengths)
            return np.empty(0, dtype=np.int64)
        fills = self._fills(capacity)
        ledger.packed_rows = len(fills) if self.options.packing else len(self._lengths)
        if self.options.packing and len(fills):
            ledger.fill = float(fills.sum()) / (len(fills) * capacity)
        return fills

    def _fills(self, capacity: int) -> np.ndarray:
        """Returns the tokens of each packed row."""
        if self.options.packing and self.options.packing_strategy == "wrapped":
            total = sum(self._lengths)
            return np.array([min(capacity, total - start) for start in range(0, total, capacity)], dtype=np.int64)
        rows = pack_best_fit(self._lengths, capacity)
        return np.array([sum(self._lengths[d] for d in row) for row in rows], dtype=np.int64)

    def _count(self, kept: Sequence[Rendered], ledger: Ledger) -> None:
        ledger.documents += len(kept)
        ledger.tokens += sum(map(len, kept))
        ledger.trained_tokens += sum(view.trained for view in kept)
        ledger.documents_with_two_bos += sum(map(self._begins_twice, kept))
        self._lengths += map(len, kept)

    def _begins_twice(self, view: Rendered) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and view.input_ids[:2].tolist() == [bos, bos]

    def _check_ends(self, kept: Sequence[Rendered], findings: Findings) -> list[str]:
        ends = [turn.stop for view in kept for turn in view.turns]
        faults = {}
        for end in ends:
            self._ends[end] = self._ends.get(end, 0) + 1
            if end not in self._stops:
                faults["foreign_stop" if end in self.special_ids else "untrained_stop"] = end
        for kind, end in faults.items():
            stops = ", ".join(repr(self.tokenizer.decode([stop])) for stop in sorted(self._stops)) or "no token at all"
            detail = f"ends with {self.tokenizer.decode([end])!r}; generation stops at {stops}"
            findings.add(kind, kept[0].source, detail)
        return list(faults) + self._check_spelled(kept, findings)

    def _check_spelled(self, kept: Sequence[Rendered], findings: Findings) -> list[str]:
        found = [
            marker
            for marker in self._spelled
            if any(marker in tail_of(view.input_ids, view.weights, self.tokenizer) for view in kept)
        ]
        for marker in found:
            findings.add("spelled_end", kept[0].source, f"ends with {marker!r}")
        return ["spelled_end"] if found else []

    def _check_reasoning(self, kept: Sequence[Rendered], findings: Findings) -> list[str]:
        empty = sum(self._empty_reasoning.count(view.input_ids, view.weights) for view in kept)
        if empty:
            findings.add("empty_reasoning", kept[0].source, f"{empty} in this row")
        return ["empty_reasoning"] if empty else []
