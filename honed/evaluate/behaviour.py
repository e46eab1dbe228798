"""How a model answers: whether it stops, how long it talks, how much it says again, whether it is right."""

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
    """A conversation up to its last answer.

    Attributes:
        source: of the row.
        messages: up to the answer.
        reference: the answer that the row has.
    """

    source: str
    messages: tuple[Message, ...]
    reference: str


def prompts_of(examples: Sequence[Example], limit: int | None) -> tuple[list[Prompt], Counter[str]]:
    """The prompts of the rows, at most `limit`, and why other rows gave none."""
    found: list[Prompt] = []
    without: Counter[str] = Counter()
    for example in examples:
        reason = _no_prompt(example)
        if reason is None and limit is not None and len(found) >= limit:
            reason = f"beyond --prompts {limit}"
        if reason is None and isinstance(example, Conversation):
            found.append(_prompt(example))
        else:
            without[reason or ""] += 1
    return found, without


def _no_prompt(example: Example) -> str | None:
    """Why a row gives no prompt; None where it does."""
    if not isinstance(example, Conversation):
        return "no chat to answer, so only the loss"
    if example.tools:
        return "announces tools"
    return None if _last_answer(example) else "no answer behind a question"


def _last_answer(conversation: Conversation) -> int:
    """Number of the last message of the assistant's; 0 where there is none, or nothing before it."""
    numbers = (n for n, message in enumerate(conversation.messages) if message.role == "assistant")
    return max(numbers, default=0)


def _prompt(conversation: Conversation) -> Prompt:
    last = _last_answer(conversation)
    return Prompt(
        source=str(conversation.source),
        messages=conversation.messages[:last],
        reference=conversation.messages[last].content,
    )


def behaviour_measures(answers: Sequence[Answer], form: Form | None = None) -> list[Measure]:
    """What can be counted in answers, each a mean over them; an answer without words has no say on its words."""
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
    """The share of tasks that are solved, of all and of each kind."""
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
