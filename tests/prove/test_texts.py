"""Statements about tokens hold for rows as honed makes them, and fail for rows that are wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from honed.prove import texts
from honed.prove.prove import find
from honed.prove.statement import FAILED, NOT_CHECKED, PASSED


def with_view(subject: Any, change: Callable[[Any], Any]) -> Any:
    """The subject with a change made to its last document."""
    *rows, last = subject.sample.rows
    changed = replace(last, views=(*last.views[:-1], change(last.views[-1])))
    return replace(subject, sample=replace(subject.sample, rows=(*rows, changed)))


def status(check: Any, subject: Any) -> str:
    return find("it", check, subject).status


def test_all_hold(subject_of: Callable[..., Any]) -> None:
    subject = subject_of()
    assert {status(check, subject) for check in texts.STATEMENTS.values()} == {PASSED}
    assert "14 turns of 12 rows" in texts.served(subject).detail


def test_a_turn_that_begins_elsewhere_fails(subject_of: Callable[..., Any]) -> None:
    def later(view: Any) -> Any:
        return replace(view, turns=tuple(replace(turn, start=turn.start + 1) for turn in view.turns))

    wrong = find("served", texts.served, with_view(subject_of(), later))
    assert wrong.status == FAILED and wrong.measured == 2 and "rows.jsonl:12" in wrong.detail


def test_another_prompt_at_serving_fails(subject_of: Callable[..., Any]) -> None:
    subject = subject_of()
    tokenizer = copy.deepcopy(subject.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\\n", "assistant: ")
    wrong = texts.served(replace(subject, sample=replace(subject.sample, tokenizer=tokenizer)))
    assert wrong.value == 14


def test_a_lost_or_untrained_end_fails(subject_of: Callable[..., Any]) -> None:
    def without_end(view: Any) -> Any:
        last = view.turns[-1]
        return replace(
            view, turns=(*view.turns[:-1], replace(last, end=last.end - 1, stop=int(view.input_ids[last.end - 2])))
        )

    def untrained(view: Any) -> Any:
        weights = view.weights.copy()
        weights[view.turns[-1].end - 1] = 0.0
        return replace(view, weights=weights)

    subject = subject_of()
    for change in (without_end, untrained):
        assert texts.stopped(with_view(subject, change)).value == 1


def test_a_lost_token_fails(subject_of: Callable[..., Any]) -> None:
    def heavier(view: Any) -> Any:
        return replace(view, weights=view.weights * 0 + 1.0)

    assert status(texts.conserved, with_view(subject_of(), heavier)) == FAILED


def test_dropped_rows_are_named(subject_of: Callable[..., Any], chat_rows: list[dict[str, Any]]) -> None:
    bad = {"messages": [{"role": "user", "content": "nobody answers"}]}
    measured = texts.conserved(subject_of(rows=[bad, *chat_rows]))
    assert measured.value == 0 and "13 rows, 12 trained; 1 dropped: " in measured.detail


def test_texts_have_no_prompt(subject_of: Callable[..., Any]) -> None:
    subject = subject_of(rows=[{"text": f"the fox asks why {n}"} for n in range(6)], data={"train_on": "all"})
    found = find("served", texts.served, subject)
    assert found.status == NOT_CHECKED and "6 rows left out: no conversation" in found.detail
    assert status(texts.stopped, subject) == PASSED


def test_rows_are_cut_where_training_cuts_them(subject_of: Any) -> None:
    """At the end of the positions that the model has learned, with the default max_length."""
    subject = subject_of("gpt2", model={"max_position_embeddings": 96}, data={"max_length": 1024}, lora=None)
    assert subject.sample.options.max_length == 96
