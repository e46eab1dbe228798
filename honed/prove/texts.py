"""Statements about tokens: what is trained is what is served, and no row or token is lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from honed.data.batch.collate import FlatCollator
from honed.data.batch.table import PackedRows
from honed.data.encode.render import Renderer, Turn, mode_of
from honed.data.example import Conversation
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare, tokenizer_with_template
from honed.data.templates.plain import PlainTemplate
from honed.data.templates.view import special_tokens, trained_turns
from honed.loss.objective import next_token_targets
from honed.model.load.vocabulary import agree_on_stops
from honed.prove.sample import SampleRow
from honed.prove.statement import Measured, NotChecked
from honed.prove.subject import Subject
from honed.quantities import counted
from honed.train.forward.seams import base_model


def served(subject: Subject) -> Measured:
    """The tokens before each trained turn against those that `apply_chat_template` feeds for it."""
    counts: Counter[str] = Counter()
    first = ""
    for row in subject.sample.rows:
        reason = _why_no_prompt(row)
        if reason is None and (reason := _spells(row, subject.tokenizer)) is None:
            wrong, turns = _differing(row, subject.tokenizer)
            counts["turns"] += turns
            counts["wrong"] += len(wrong)
            first = first or (f"; first: {row.example.source}, {wrong[0]}" if wrong else "")
        else:
            counts[reason] += 1
    left_out = [f"{counted(n, 'row')} left out: {why}" for why, n in counts.items() if why not in ("turns", "wrong")]
    if not counts["turns"]:
        raise NotChecked("; ".join(left_out) or "no row has a trained turn")
    detail = "; ".join([f"{counted(counts['turns'], 'turn')} of {counted(len(subject.sample.rows), 'row')}", *left_out])
    return Measured(value=counts["wrong"], bound=0, detail=f"{detail}{first}")


def stopped(subject: Subject) -> Measured:
    """The last token of each trained turn: trained, a special one, and one at which generation will stop."""
    special = set(subject.tokenizer.convert_tokens_to_ids(special_tokens(subject.tokenizer)))
    model = base_model(subject.drill.make())
    rows = [row for row in subject.sample.rows if not row.cut]
    turns = [(view, turn) for row in rows for view in row.views for turn in view.turns]
    if not turns:
        raise NotChecked("no row has a trained turn that ends within max_length")
    agree_on_stops(model, subject.tokenizer, sorted({turn.stop for _, turn in turns}))
    known = model.generation_config.eos_token_id
    stops = special & {known} if isinstance(known, int) else special & set(known or ())
    wrong = [t for view, t in turns if int(view.input_ids[t.end - 1]) not in stops or view.weights[t.end - 1] <= 0]
    ends = Counter(subject.tokenizer.convert_ids_to_tokens(int(view.input_ids[t.end - 1])) for view, t in turns)
    named = ", ".join(f"{token!r} {n:,}" for token, n in ends.most_common(3))
    cut = len(subject.sample.rows) - len(rows)
    detail = f"{counted(len(turns), 'turn ends', 'turns end')} with {named}" + (
        f"; {counted(cut, 'row')} cut at max_length left out" if cut else ""
    )
    return Measured(value=len(wrong), bound=0, detail=detail)


def conserved(subject: Subject) -> Measured:
    """Rows read against rows trained and dropped; trained tokens against the targets in batches of packed rows."""
    sample = subject.sample
    capacity = sample.options.max_length or 1 << 20
    together = replace(sample.options, packing=True, max_length=capacity)
    tears = together.packing_strategy != "bfd"  # which splits documents: count what is left of each
    prepared = prepare(sample.data, sample.tokenizer, together)
    ledger = prepared.ledger
    dropped = sum(ledger.rows_dropped.values())
    rows_lost = abs(ledger.rows_in - ledger.rows_trained - dropped)
    expected = ledger.trained_tokens if tears else sum(view.trained for row in sample.rows for view in row.views)
    tokens_lost = abs(expected - asked_for(prepared.rows))
    reasons = "; ".join(f"{n} dropped: {why}" for why, n in ledger.rows_dropped.items())
    detail = f"{counted(ledger.rows_in, 'row')}, {ledger.rows_trained:,} trained" + (f"; {reasons}" if reasons else "")
    detail += f"; {counted(expected, 'trained token')} in {counted(len(prepared.rows), 'packed row')}"
    return Measured(value=rows_lost + tokens_lost, bound=0, detail=detail)


def asked_for(rows: PackedRows) -> int:
    """Targets in the batches of these rows, one row per batch."""
    batches = (FlatCollator()([rows[n]]) for n in range(len(rows)))
    return sum(int((next_token_targets(batch["labels"]) >= 0).sum()) for batch in batches)


def _why_no_prompt(row: SampleRow) -> str | None:
    """Why there is no prompt before what is trained in this row; None if there is one."""
    if not isinstance(row.example, Conversation):
        return "no conversation, so no prompt"
    if mode_of(row.example, row.options.train_on) == "all":
        return "the whole text is trained"
    return "cut at max_length" if row.cut else None


def _spells(row: SampleRow, tokenizer: Any) -> str | None:
    assert isinstance(row.example, Conversation)
    control = special_tokens(tokenizer)
    if any(token in message.content for message in row.example.messages for token in control):
        return "control tokens in the text, which honed trains and serves as text, and apply_chat_template does not"
    return None


def _differing(row: SampleRow, tokenizer: Any) -> tuple[list[str], int]:
    """The differing turns in words, and the number of turns."""
    example = row.example
    assert isinstance(example, Conversation)
    numbers = list(trained_turns(example.messages, mode_of(example, row.options.train_on), row.options.train_roles))
    turns = [(view.input_ids, turn) for view in row.views for turn in view.turns]
    if len(turns) != len(numbers):
        return [f"{len(turns)} turns are trained, and the row has {len(numbers)}"], len(numbers)
    wrong = []
    for (ids, turn), number in zip(turns, numbers, strict=True):
        prompt = _prompt(row, example, number, tokenizer)
        if not _begins(ids, turn, prompt):
            wrong.append(f"message {number + 1}: {turn.start} tokens come before it, {len(prompt)} are served")
    return wrong, len(turns)


def _begins(ids: np.ndarray, turn: Turn, prompt: np.ndarray) -> bool:
    return turn.start == len(prompt) and np.array_equal(ids[: turn.start], prompt)


def _prompt(row: SampleRow, example: Conversation, number: int, tokenizer: Any) -> np.ndarray:
    """The prompt for the message of this number, when it is served."""
    before = example.messages[:number]
    if isinstance(row.template, PlainTemplate):  # encoded message by message, by honed alone
        return np.array(Renderer(tokenizer, row.template).prompt_ids(row.template.prompt(before, example.tools)))
    options: PrepareOptions = row.options
    own = tokenizer if options.template == "auto" else tokenizer_with_template(tokenizer, options.template)
    text = own.apply_chat_template(
        [message.as_template_input() for message in before] if before else [],
        tools=[dict(tool) for tool in example.tools] or None,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        **{**options.template_arguments, **example.template_arguments},
    )
    return np.array(text)


STATEMENTS = {
    "trained prompts = served prompts (turns that differ)": served,
    "every trained turn ends with a stop token (turns that do not)": stopped,
    "no row and no trained token is lost (rows, tokens)": conserved,
}
