"""Measures one model, or two on the same rows, and returns the result as plain data, as `--json` writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from honed.data.templates.view import Template
from honed.errors import ModelError
from honed.evaluate.before_after import Form
from honed.evaluate.behaviour import Prompt, behaviour_measures, task_measures
from honed.evaluate.gate import Verdict, is_relative
from honed.evaluate.held_out import Collate, HeldOut, Scorer, loss_measures, score
from honed.evaluate.measure import Compared, Measure, perplexity
from honed.evaluate.tasks import Check, Task
from honed.generate.answer import Answer, answers, need_template


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """What models are measured on: rows to score, prompts and tasks to answer, and the required form of answers."""

    held_out: HeldOut
    prompts: Sequence[Prompt] = ()
    tasks: Sequence[Task] = ()
    form: Form | None = None
    max_new_tokens: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The results of one model.

    Attributes:
        measures: loss, behaviour and tasks, in this order.
        said: answers to the exam's prompts, then to its tasks.
        lm_eval: task -> metric -> value.
    """

    measures: list[Measure]
    said: list[Answer]
    lm_eval: dict[str, dict[str, float]] = field(default_factory=dict)


def sit(
    exam: Exam, model: Any, tokenizer: Any, template: Template | None, *, name: str, scorer: Scorer, collate: Collate
) -> Measured:
    """Scores the rows, and answers the prompts and tasks greedily.

    Raises:
        ModelError: there are prompts or tasks, but no template.
    """
    scores = score([document.packed for document in exam.held_out.documents], scorer, collate)

    questions = [*(prompt.messages for prompt in exam.prompts), *(task.messages for task in exam.tasks)]
    said: list[Answer] = []
    if questions:
        known = need_template(template, name)
        said = answers(model, tokenizer, known, questions, max_new_tokens=exam.max_new_tokens)
    given, solved = said[: len(exam.prompts)], said[len(exam.prompts) :]
    measures = loss_measures(exam.held_out, scores)
    measures += behaviour_measures(given, exam.form) if given else []
    measures += task_measures(exam.tasks, solved)
    return Measured(measures=measures, said=said)


def check_same_tokens(held_out: HeldOut, tokenizer: Any, other: Any, *, vocabulary: int, name: str) -> None:
    """Checks that two models have the same tokens, on those that the rows use; otherwise losses are not comparable.

    Args:
        held_out: rows as ids of `tokenizer`.
        tokenizer, other: the tokenizers of the model and of the model that it is compared with.
        vocabulary: number of rows in the other model's embedding.
        name: the other model's name, for the message.

    Raises:
        ModelError: the tokens differ.
    """
    used = sorted({int(token) for document in held_out.documents for token in document.packed.input_ids})
    own, theirs = (tok.convert_ids_to_tokens([i for i in used if i < vocabulary]) for tok in (tokenizer, other))
    if used[-1] < vocabulary and own == theirs:
        return
    wrong = next((f"{token!r} is {there!r}" for token, there in zip(own, theirs, strict=True) if token != there), None)
    raise ModelError(
        f"{name} has other tokens: {wrong or f'id {used[-1]} is beyond its {vocabulary}'}.",
        fix="a loss per token compares models of one tokenizer: name the model that the training began with",
    )


def result(
    exam: Exam,
    compared: Sequence[Compared],
    tuned: Measured,
    base: Measured | None,
    verdicts: Sequence[Verdict],
    **facts: Any,
) -> dict[str, Any]:
    """All results as plain data; `facts` (names of models and files, the command) come first."""
    ledger = exam.held_out.ledger.as_dict()
    speakers = {"model": tuned, **({"against": base} if base else {})}
    return {
        **facts,
        "rows": {key: ledger[key] for key in ("rows_in", "rows_trained", "rows_dropped", "rows_cut", "trained_tokens")},
        "form": (exam.form.says or exam.form.pattern) if exam.form else "",
        "measures": [_measure(one) for one in compared],
        "gate": [_verdict(verdict) for verdict in verdicts],
        "answers": _answers(exam, speakers),
        "lm_eval": {who: one.lm_eval for who, one in speakers.items() if one.lm_eval},
    }


def _measure(one: Compared) -> dict[str, Any]:
    found: dict[str, Any] = asdict(one) | {"difference": one.difference}
    if one.unit == "nats":
        found["perplexity"] = perplexity(one.value)
        found["base_perplexity"] = None if one.base is None else perplexity(one.base)
    return {key: _number(value) if isinstance(value, float) else value for key, value in found.items()}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    rule = verdict.rule
    return {
        "name": rule.name,
        "limit": rule.limit,
        "relative": is_relative(rule.name),
        "change": _number(verdict.change),
        "passed": verdict.passed,
    }


def _answers(exam: Exam, speakers: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Each question with its answers; `passed` says whether an answer has the form or solves the task."""
    follows = exam.form.follows if exam.form else None
    questions = [(prompt.source, prompt.messages, prompt.reference) for prompt in exam.prompts]
    checks = [follows] * len(questions) + [task.check for task in exam.tasks]
    questions += [(f"task {n}", task.messages, f"{task.kind}: {task.wanted}") for n, task in enumerate(exam.tasks, 1)]
    return [
        {
            "source": source,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "reference": reference,
            **{who: _said(one.said[number], checks[number]) for who, one in speakers.items()},
        }
        for number, (source, messages, reference) in enumerate(questions)
    ]


def _said(answer: Answer, check: Check | None) -> dict[str, Any]:
    said: dict[str, Any] = {"text": answer.text, "stopped": answer.stopped}
    return said | ({"passed": check(answer.text)} if check else {})


def _number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None
