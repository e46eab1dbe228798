"""Statements about sums: however documents are batched, the loss and the gradient of a step are the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from honed.data.batch.pack import pack_best_fit
from honed.data.batch.prefix import MIN_SHARED, shared_row
from honed.data.batch.table import PackedRows, TokenTable
from honed.model.adapters.fused_lora import coverage
from honed.prove.engine import Step, apart, head_apart, make_trainer, one_step, reference
from honed.prove.models import has_experts
from honed.prove.sample import together
from honed.prove.statement import Measured, NotChecked
from honed.prove.subject import Subject
from honed.quantities import counted
from honed.train.forward.seams import Seams, opened
from honed.train.forward.shared_prefixes import find_obstacle


def packed(subject: Subject) -> Measured:
    """Documents that share rows against each by itself, from first principles."""
    subject.need_flat()
    subject.need_two()
    lengths = subject.rows.table.lengths
    groups = pack_best_fit(lengths, int(max(lengths.max(), lengths.sum() // 2)))
    found = _step(subject, together(subject.rows, groups), packing=True)
    return _against(subject, found, one_by_one(subject), f"{subject.size}, in {counted(len(groups), 'row')}")


def padded(subject: Subject) -> Measured:
    """Padded batches against each document by itself, from first principles."""
    found = _step(subject, subject.rows, padded=True)
    return _against(subject, found, one_by_one(subject), subject.size)


def flat(subject: Subject) -> Measured:
    """Batches without padding against padded ones."""
    subject.need_flat()
    found, expected = _step(subject, subject.rows), _step(subject, subject.rows, padded=True)
    return _against(subject, found, expected, subject.size)


def accumulated(subject: Subject) -> Measured:
    """A step in several micro-batches against the same step in one."""
    subject.need_two()
    parts = min(4, len(subject.rows))
    whole, divided = _step(subject, subject.rows), _step(subject, subject.rows, accumulation=parts)
    weights = [float(subject.rows[n].weights.sum()) for n in range(len(subject.rows))]
    detail = (
        f"{counted(parts, 'micro-batch', 'micro-batches')}; documents train {min(weights):g} to {max(weights):g} tokens"
    )
    return _against(subject, divided, whole, detail)


def checkpointed(subject: Subject) -> Measured:
    """Gradient checkpointing against none."""
    found = _step(subject, subject.rows, gradient_checkpointing=True)
    return _against(subject, found, _step(subject, subject.rows), subject.size)


def shared(subject: Subject) -> Measured:
    """Shared prefixes computed once against computed for each document."""
    subject.need_flat()
    subject.need_two()
    if obstacle := find_obstacle(subject.model.make(), subject.seams):
        raise NotChecked(obstacle)
    rows, own = _with_prefix(subject.rows)
    tree = shared_row([rows[n] for n in range(len(rows))])
    tokens = len(rows.table.input_ids)
    if tree is None:
        raise AssertionError("rows that begin alike share nothing; this is a bug in honed")
    found, expected = _step(subject, rows, share_prefixes=True), _step(subject, rows)
    whose = "the rows' own beginnings" if own else "a beginning put before the rows, which share none"
    return _against(subject, found, expected, f"{counted(len(tree.input_ids), 'token')} for {tokens:,}; {whose}")


def head(subject: Subject) -> Measured:
    """Scores at the head, trained positions only, against whole logits."""
    if not subject.seams.scoring:
        raise NotChecked("; ".join(subject.seams.notes) or "the model does not take honed's head")
    value, tokens = head_apart(subject.model.make(), subject.rows, subject.seams)
    return Measured(value=value, bound=subject.rounding, detail=f"{counted(tokens, 'token')}, the furthest of them")


def lora(subject: Subject) -> Measured:
    """LoRA layers that compute as one function against peft's own."""
    if not subject.seams.lora:
        raise NotChecked("; ".join(subject.seams.notes) or "no LoRA is trained")
    model = subject.model.make()
    with opened(model, Seams(lora=True)):
        found = reference(model, subject.rows)
    return _against(subject, found, one_by_one(subject), f"{counted(coverage(model)[0], 'layer')}; {subject.size}")


def isolated(subject: Subject) -> Measured:
    """Documents after another one in a row, before and after that one is changed: the same bits."""
    subject.need_flat()
    subject.need_two()
    row = together(subject.rows, [range(len(subject.rows))])
    table, first = row.table, int(row.table.starts[1])
    ids, weights = table.input_ids.copy(), table.weights.copy()
    weights[:first] = 0.0
    ids[:first] = ids[:first][::-1]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(subject.trainer, subject.model.make(), row, subject.tokenizer, folder, packing=True)
        losses = [
            trainer.evaluate(PackedRows(TokenTable.of(i, weights, table.starts), row.rows))["eval_loss"]
            for i in (table.input_ids, ids)
        ]
    routed = has_experts(subject.model.make().config)
    detail = f"{counted(first, 'token')} reversed before {counted(len(table) - 1, 'document')}"
    return Measured(
        value=abs(losses[1] - losses[0]) / abs(losses[0]),
        bound=subject.rounding * 1e-3 if routed else 0.0,
        detail=f"{detail}; experts compute in groups, which round differently" if routed else detail,
    )


def _step(subject: Subject, rows: PackedRows, **changes: Any) -> Step:
    """The trainer's step; cached for the subject's own rows."""

    def step() -> Step:
        return one_step(subject.trainer, subject.model.make(), rows, subject.tokenizer, **changes)

    return _known(subject, f"step {changes}", step) if rows is subject.rows else step()


def one_by_one(subject: Subject) -> Step:
    """The step from first principles, each document by itself; cached."""
    return _known(subject, "reference", lambda: reference(subject.model.make(), subject.rows))


def _known(subject: Subject, name: str, compute: Callable[[], Step]) -> Step:
    if name not in subject.steps:
        subject.steps[name] = compute()
    return subject.steps[name]


def _against(subject: Subject, found: Step, expected: Step, detail: str) -> Measured:
    return Measured(value=apart(found, expected), bound=subject.rounding, detail=detail)


def _with_prefix(rows: PackedRows) -> tuple[PackedRows, bool]:
    """The rows if they share a prefix, else with an untrained prefix before each; and whether they are unchanged."""
    if shared_row([rows[n] for n in range(len(rows))]) is not None:
        return rows, True
    table = rows.table
    prefix = np.resize(table.input_ids, MIN_SHARED + 4)
    ids, weights = (
        [np.concatenate([before, flat[a:b]]) for a, b in zip(table.starts, table.starts[1:], strict=False)]
        for before, flat in ((prefix, table.input_ids), (np.zeros(len(prefix), np.float32), table.weights))
    )
    starts = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return PackedRows(TokenTable.of(np.concatenate(ids), np.concatenate(weights), starts), rows.rows), False


STATEMENTS = {
    "packed rows = one document at a time (loss, gradient)": packed,
    "padded batches = one document at a time (loss, gradient)": padded,
    "flat batches = padded batches (loss, gradient)": flat,
    "one micro-batch = several (loss, gradient)": accumulated,
    "recomputed activations = kept ones (loss, gradient)": checkpointed,
    "shared prefixes computed once = for each (loss, gradient)": shared,
    "scores at the head = whole logits (each token)": head,
    "LoRA as one function = peft's own layers (loss, gradient)": lora,
    "no document sees another (loss of the others)": isolated,
}
