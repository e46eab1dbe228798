"""Held-out rows -> the loss of each trained token, by role, by source file and by position in the turn.

Shapes: T tokens of a document, K trained tokens of all documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from honed.data.batch.collate import Batch
from honed.data.batch.table import PackedRow
from honed.data.encode.render import Rendered
from honed.data.example import Conversation, Document, Example, PromptCompletion
from honed.data.ledger import Ledger
from honed.data.prepare.kept import KeptRow
from honed.data.prepare.options import PrepareOptions, reading_of
from honed.data.prepare.reader import RowReader
from honed.data.read.formats import read_example
from honed.data.read.sources import read_rows
from honed.data.templates.view import Template, trained_turns
from honed.errors import DataError
from honed.evaluate.measure import Measure
from honed.evaluate.statistics import Ratio
from honed.progress import Progress
from honed.quantities import counted

ROLES = ("assistant", "user", "system", "tool", "completion", "text", "other")
KINDS = ("first token", "answer body", "end of turn", "outside turns")
FIRST, BODY, END, OUTSIDE = range(4)
TOKENS_AT_A_TIME = 4096  # per batch, padding included; a longer document is its own batch


class Scores(Protocol):
    """Scores of a batch's trained tokens, row by row, as in `honed.loss.head.TokenScores`; correct_N if requested."""

    @property
    def nll_N(self) -> torch.Tensor: ...

    @property
    def correct_N(self) -> torch.Tensor | None: ...


class Scorer(Protocol):
    """A model that scores batches from the collators."""

    def __call__(self, batch: Batch, extras: bool) -> Scores: ...


Collate = Callable[[Sequence[PackedRow]], Batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentScores:
    """A document's trained tokens: negative log-likelihood in nats, float64, and whether each was the most likely."""

    nll_N: np.ndarray
    correct_N: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A document with the role and kind of each token.

    Attributes:
        row: number of the row that it comes from.
        packed: ids and loss weights.
        role_T, kind_T: int8, indices into ROLES and KINDS.
    """

    row: int
    packed: PackedRow
    role_T: np.ndarray
    kind_T: np.ndarray

    @property
    def trained_T(self) -> np.ndarray:
        """bool: which tokens are scored."""
        return self.packed.weights > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The data to score: rows with trained tokens, their documents in order, and the ledger of all rows."""

    examples: tuple[Example, ...]
    documents: tuple[Labelled, ...]
    ledger: Ledger


def read_held_out(data: Any, tokenizer: Any, template: Template | None, options: PrepareOptions) -> HeldOut:
    """Renders rows exactly as in training, and labels each token with its role and kind.

    Documents longer than `max_length` are scored up to this length; unusable rows are dropped. The ledger counts both.

    Args:
        data: what `honed.data.read.sources.read_rows` takes.
        tokenizer, template: the model's.
        options: those of its training; packing, `overlong` and `bad_rows` are ignored.

    Raises:
        DataError: there is nothing to score.
        TemplateError: the template's spans cannot be verified in any row.
    """
    whole = replace(options, max_length=None, packing=False, bad_rows="drop")
    rows = dict(read_rows(data))
    ledger = Ledger()
    reading = reading_of(options, template)
    examples: list[Example] = []
    documents: list[Labelled] = []
    for kept in RowReader(tokenizer, template, whole)(rows.items(), ledger):
        example = read_example(rows[kept.source], kept.source, reading, format=options.format)
        own = labelled(kept, example, options, row=len(examples))
        if own := _within(own, kept, options.max_length, ledger):
            examples.append(example)
            documents += own
    if not documents:
        raise DataError(f"No row can be scored.\n{ledger.summary()}", fix="name rows like those used in training")
    ledger.documents = len(documents)
    ledger.tokens = sum(len(document.packed.input_ids) for document in documents)
    ledger.trained_tokens = sum(int(document.trained_T.sum()) for document in documents)
    return HeldOut(examples=tuple(examples), documents=tuple(documents), ledger=ledger)


def labelled(kept: KeptRow, example: Example, options: PrepareOptions, *, row: int = 0) -> list[Labelled]:
    """The row's documents with the role and kind of each token."""
    turns = sum(len(view.turns) for view in kept.views)
    roles = iter(_roles_of_turns(example, options, turns))
    return [_label(view, [next(roles) for _ in view.turns], row) for view in kept.views]


def _roles_of_turns(example: Example, options: PrepareOptions, turns: int) -> list[str]:
    """The role of each trained turn, in the order of the documents."""
    if isinstance(example, PromptCompletion):
        return ["completion"] * turns
    if isinstance(example, Document):
        return ["text"] * turns
    if isinstance(example, Conversation) and turns:
        mode = "assistant" if options.train_on in ("all", "completion") else options.train_on
        roles = ("assistant",) if options.train_on == "all" else options.train_roles
        messages = example.messages
        if options.train_on == "all":  # ignore the row's own `train` and `weight`
            messages = tuple(replace(message, train=None, weight=None) for message in messages)
        named = [messages[number].role for number in trained_turns(messages, mode, roles)]
        if len(named) == turns:
            return [name if name in ROLES else "other" for name in named]
    return ["other"] * turns


def _label(view: Rendered, roles: Sequence[str], row: int) -> Labelled:
    role_T = np.full(len(view), ROLES.index("other"), dtype=np.int8)
    kind_T = np.full(len(view), OUTSIDE, dtype=np.int8)
    for turn, role in zip(view.turns, roles, strict=True):
        role_T[turn.start : turn.end] = ROLES.index(role)
        kind_T[turn.start : turn.end] = BODY
        if len(trained := np.flatnonzero(view.weights[turn.start : turn.end])):
            kind_T[turn.start + trained[0]] = FIRST
        kind_T[turn.end - 1] = END
    packed = PackedRow(input_ids=view.input_ids, weights=view.weights, lengths=(len(view),))
    return Labelled(row=row, packed=packed, role_T=role_T, kind_T=kind_T)


def _within(documents: list[Labelled], kept: KeptRow, limit: int | None, ledger: Ledger) -> list[Labelled]:
    """The documents up to the limit; the ledger records what was cut, or that nothing is left."""
    longest = max(len(document.packed.input_ids) for document in documents)
    if limit is None or longest <= limit:
        kept.count(ledger)
        return documents
    detail = f"{counted(longest, 'token')}, max_length {limit}"
    short = [cut for document in documents if (cut := _start(document, limit)).trained_T.any()]
    if short:
        replace(kept, cut=("overlong: scored up to max_length", detail)).count(ledger)
    else:
        ledger.drop(kept.source, "overlong", detail)
    return short


def _start(document: Labelled, limit: int) -> Labelled:
    ids, weights = document.packed.input_ids[:limit], document.packed.weights[:limit]
    packed = PackedRow(input_ids=ids, weights=weights, lengths=(len(ids),))
    return replace(document, packed=packed, role_T=document.role_T[:limit], kind_T=document.kind_T[:limit])


@torch.no_grad()
def score(
    rows: Sequence[PackedRow], scorer: Scorer, collate: Collate, *, extras: bool = False, desc: str = "Scoring"
) -> list[DocumentScores]:
    """Scores of the trained tokens of each row, in the order of the rows, on the CPU; nll_N is float64.

    Args:
        rows: one document each; batched by length to reduce padding.
        extras: also compute correct_N.
        desc: text of the progress bar.
    """
    found: list[DocumentScores | None] = [None] * len(rows)
    with Progress(desc=desc, total=len(rows), unit="document") as bar:
        for batch in batches([len(row.input_ids) for row in rows]):
            scores = scorer(collate([rows[n] for n in batch]), extras)
            counts = [int(np.count_nonzero(rows[n].weights)) for n in batch]
            nll = scores.nll_N.double().cpu().split(counts)
            correct = scores.correct_N.cpu().split(counts) if scores.correct_N is not None else [None] * len(batch)
            for n, own, right in zip(batch, nll, correct, strict=True):
                found[n] = DocumentScores(nll_N=own.numpy(), correct_N=None if right is None else right.numpy())
            bar.advance(len(batch))
    return [one for one in found if one is not None]


def batches(lengths: Sequence[int], tokens: int = TOKENS_AT_A_TIME) -> list[list[int]]:
    """Document numbers, longest first, in batches of at most `tokens` tokens when padded to the longest document."""
    made: list[list[int]] = []
    for number in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if made and lengths[made[-1][0]] * (len(made[-1]) + 1) <= tokens:
            made[-1].append(number)
        else:
            made.append([number])
    return made


def loss_measures(held_out: HeldOut, scores: Sequence[DocumentScores]) -> list[Measure]:
    """The loss per token over all rows, then by role, source and kind of token, where there are several of each.

    Each is a ratio over rows, weighted as in training: the loss that one training step over all of them would have.
    """
    documents, rows = held_out.documents, len(held_out.examples)
    row_K = _of_trained(documents, [np.full(len(d.role_T), d.row) for d in documents])
    weight_K = _of_trained(documents, [d.packed.weights.astype(np.float64) for d in documents])
    role_K = _of_trained(documents, [d.role_T for d in documents])
    kind_K = _of_trained(documents, [d.kind_T for d in documents])
    names = [example.source.file for example in held_out.examples]
    files = list(dict.fromkeys(names))
    file_K = np.array([files.index(name) for name in names])[row_K]
    nll_K = np.concatenate([score.nll_N for score in scores])

    def measure(name: str, label: str, mask_K: np.ndarray) -> Measure:
        weights = np.where(mask_K, weight_K, 0.0)
        ratio = Ratio(
            sums_N=np.bincount(row_K, weights * nll_K, minlength=rows),
            weights_N=np.bincount(row_K, weights, minlength=rows),
        )
        return Measure(name=name, label=label, unit="nats", ratio=ratio, of=int(mask_K.sum()))

    parts: list[tuple[str, np.ndarray, Sequence[str]]] = [
        ("role", role_K, ROLES),
        ("source", file_K, files),
        ("kind", kind_K, KINDS),
    ]
    found = [measure("loss", "loss", np.ones(len(row_K), dtype=bool))]
    for part, code_K, known in parts:
        masks = {name: mask for code, name in enumerate(known) if (mask := code_K == code).any()}
        if len(masks) > 1:
            found += [measure(f"loss.{part}.{name}", f"  {part}: {name}", mask) for name, mask in masks.items()]
    return found


def _of_trained(documents: Sequence[Labelled], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The values at the trained tokens, concatenated over the documents; `arrays` has one array per document."""
    return np.concatenate([array[d.trained_T] for d, array in zip(documents, arrays, strict=True)])
