"""Prompts from rows, and what is counted in answers."""

from __future__ import annotations

from typing import Any

import pytest

from honed.data.example import Conversation, Document, Message, Source
from honed.evaluate.before_after import Form
from honed.evaluate.behaviour import behaviour_measures, prompts_of, task_measures
from honed.evaluate.measure import Measure
from honed.evaluate.tasks import Task
from honed.generate.answer import Answer

HERE = Source(file="rows.jsonl", row=1)


def talk(*roles: str, **more: Any) -> Conversation:
    messages = tuple(Message(role=role, content=f"{role} {n}") for n, role in enumerate(roles))
    return Conversation(messages=messages, source=HERE, **more)


def said(text: str, stopped: bool = True, tokens: int = 3) -> Answer:
    return Answer(text=text, stopped=stopped, tokens=tokens)


def values(measures: list[Measure]) -> dict[str, float]:
    return {measure.name: measure.ratio.value for measure in measures}


def test_a_prompt_ends_before_the_last_answer() -> None:
    [prompt], without = prompts_of([talk("system", "user", "assistant", "user", "assistant", "user")], None)
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert (prompt.reference, prompt.source, without) == ("assistant 4", "rows.jsonl:1", {})


def test_every_row_is_accounted_for() -> None:
    rows = [
        talk("user", "assistant"),
        Document(text="a", source=HERE),
        talk("user", "assistant", tools=({"name": "f"},)),
        talk("user"),
        talk("assistant", "user"),
        talk("user", "assistant"),
        talk("user", "assistant"),
    ]
    found, without = prompts_of(rows, 2)
    assert len(found) == 2
    assert without == {
        "no chat to answer, so only the loss": 1,
        "announces tools": 1,
        "no answer behind a question": 2,
        "beyond --prompts 2": 1,
    }


def test_what_is_counted_in_answers() -> None:
    answers = [said("no no no no", False, 8), said("yes it is", True, 4), said("", True, 1)]
    found = values(behaviour_measures(answers, Form(pattern="yes.*")))
    assert found["stops"] == pytest.approx(2 / 3)
    assert found["tokens"] == pytest.approx(13 / 3)
    assert found["distinct1"] == pytest.approx((1 / 4 + 1) / 2)  # an empty answer has no words
    assert found["distinct3"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["repeat"] == pytest.approx(3 / 3)
    assert found["repetition"] == pytest.approx((3 / 4 + 0) / 2)
    assert found["form"] == pytest.approx(1 / 3)
    assert "form" not in values(behaviour_measures(answers))


def test_tasks_in_all_and_by_kind() -> None:
    def task(kind: str, wanted: str) -> Task:
        return Task(messages=(), kind=kind, wanted=wanted, check=lambda answer: answer == wanted)

    tasks = [task("exact", "a"), task("regex", "b"), task("exact", "c")]
    measures = task_measures(tasks, [said("a"), said("b"), said("x")])
    assert values(measures) == {"tasks": pytest.approx(2 / 3), "exact": 0.5, "regex": 1.0}
    assert [measure.of for measure in measures] == [3, 2, 1]
    assert task_measures([], []) == []
