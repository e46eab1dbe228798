"""How a model answers: whether it stops, how long its answers are, how much it repeats, whether it is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from honed.data.example import Conversation, Example, Message
from honed.evaluate.before_after import Form
from honed.evaluate.measure import Measure
from honed.evaluate.statistics import Ratio
from honed.evaluate.tasks import CHECKS, Task
from honed.evaluate.text_measures import distinct, longest_repeat, words
from honed.generate.answer import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation without its last answer, which is the `reference`."""

    source: str
    messages: tuple[Message, ...]
    reference: str


def prompts_of(examples: Sequence[Example], limit: int | None) -> tuple[list[Prompt], Counter[str]]:
    """At most `limit` prompts from the rows, and the reasons why other rows gave none, counted."""
    found: list[Prompt] = []
    without: Counter[str] = Counter()
    for example in examples:
        prompt = _prompt(example)
        if isinstance(prompt, str):
            without[prompt] += 1
        elif limit is not None and len(found) >= limit:
            without[f"beyond --prompts {limit}"] += 1
        else:
            found.append(prompt)
    return found, without


def _prompt(example: Example) -> Prompt | str:
    """The prompt of a row, or the reason why it has none."""
    if not isinstance(example, Conversation):
        return "no chat to answer, so only the loss"
    if example.tools:
        return "announces tools"
    if example.template_arguments:
        return "has chat_template_kwargs"
    messages = example.messages
    last = max((n for n, message in enumerate(messages) if message.role == "assistant"), default=0)
    if not last:  # none, or nothing before it
        return "no answer behind a question"
    return Prompt(source=str(example.source), messages=messages[:last], reference=messages[last].content)


def behaviour_measures(answers: Sequence[Answer], form: Form | None = None) -> list[Measure]:
    """Statistics of the answers, each a mean over them; answers without words are left out of those about words."""
    texts = [words(answer.text) for answer in answers]
    repeats = [longest_repeat(text) for text in texts]
    shares = [repeat / len(text) if text else None for repeat, text in zip(repeats, texts, strict=True)]
    return [
        _mean("stops", "answers that stop by themselves", "share", [answer.stopped for answer in answers]),
        _mean("tokens", "length", "tokens", [answer.tokens for answer in answers]),
        *(_mean(f"distinct{n}", f"distinct-{n}", "share", [distinct(text, n) for text in texts]) for n in (1, 2, 3)),
        _mean("repeat", "longest repeated run", "words", repeats),
        _mean("repetition", "share of words in it", "share", shares),
        *([_mean("form", "answers in the form", "share", [form.follows(a.text) for a in answers])] if form else []),
    ]


def task_measures(tasks: Sequence[Task], answers: Sequence[Answer]) -> list[Measure]:
    """The share of solved tasks, overall and for each kind."""
    solved = [task.check(answer.text) for task, answer in zip(tasks, answers, strict=True)]
    found = [_mean("tasks", "tasks solved", "share", solved)] if tasks else []
    for kind in CHECKS:
        own = [right if task.kind == kind else None for task, right in zip(tasks, solved, strict=True)]
        if any(right is not None for right in own):
            found.append(_mean(kind, f"  {kind}", "share", own))
    return found


def _mean(name: str, label: str, unit: str, values: Sequence[float | bool | None]) -> Measure:
    of = sum(value is not None for value in values)
    return Measure(name=name, label=label, unit=unit, ratio=Ratio.of(values), of=of)
