"""Batches that are cut short and gone on with give the file that one run gives; every drop is counted."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from honed.data.example import Message
from honed.errors import DataError, RecipeError, RunError
from honed.generate.batch.batch import Asking, answer_batch
from honed.generate.batch.filters import Candidate, Filters, verdicts
from honed.generate.batch.prompts import Prompt, read_prompts, read_tasks, seed_prompts, with_system
from honed.generate.engine.engine import Engine
from honed.generate.request import Completion, Piece, Reason, Request
from honed.generate.sampling import Sampling


class Scripted:
    """An engine whose answer follows from prompt, seed and number alone; it may die after some answers."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.dies_after, self.answered = dies_after, 0

    def run(self, requests: Iterable[Request], *, pieces: bool = False) -> Iterator[Piece]:
        for number, request in enumerate(requests):
            for answer in range(request.first, request.first + request.answers):
                if self.answered == self.dies_after:
                    raise KeyboardInterrupt
                self.answered += 1
                text = f"{bytes(request.prompt_ids).decode()} seed {request.seed} number {answer}"
                reason: Reason = "length" if answer == 1 else "stop"
                done = Completion(ids=(1, 2, 3), text=text, reason=reason)
                yield Piece(request=number, answer=answer, text=text, done=done)


def encode(messages: Sequence[Message]) -> list[int]:
    return list("|".join(m.content for m in messages).encode())


def rows(count: int = 3) -> list[Prompt]:
    return list(read_prompts([{"prompt": f"question {n}"} for n in range(count)]))


def batch(out: Path, engine: Any, prompts: list[Prompt], *, samples: int = 3, **filters: Any) -> dict[str, Any]:
    asking = Asking(model="m", samples=samples)
    return answer_batch(prompts, engine, encode, out=out, asking=asking, filters=Filters(**filters))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_become_rows_to_train_on(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    ledger = batch(out, Scripted(), [with_system(prompt, "be brief") for prompt in rows()])
    found = lines(out)
    assert (len(found), ledger["kept"], ledger["answers"], ledger["dropped"]) == (9, 9, 9, {})
    assert [(row["row"], row["sample"]) for row in found] == [(n, k) for n in (1, 2, 3) for k in range(3)]
    assert [turn["role"] for turn in found[0]["messages"]] == ["system", "user", "assistant"]
    assert found[0]["messages"][-1]["content"].startswith("be brief|question 0 seed")
    assert json.loads((tmp_path / "answers.jsonl.ledger.json").read_text()) == ledger


@pytest.mark.parametrize("dies_after", [0, 1, 4, 8])
@pytest.mark.parametrize("torn", [True, False])
def test_a_batch_goes_on_where_it_was_killed(dies_after: int, torn: bool, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    batch(whole, Scripted(), rows())
    with pytest.raises(KeyboardInterrupt):
        batch(out, Scripted(dies_after), rows())
    assert not out.exists()
    journal = tmp_path / "out.jsonl.journal"
    if torn:
        journal.write_bytes(journal.read_bytes() + b'{"row": 1, "digest": "\xe7\x8b')
    engine = Scripted()
    ledger = batch(out, engine, rows())
    assert engine.answered == 9 - dies_after
    assert (ledger["answered_before"], ledger["repaired_last_line"]) == (dies_after, torn)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_loses_no_answer_and_changes_none(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, forked: Callable[..., int]
) -> None:
    """A real kill -9 in the middle of sampled answers of the real engine, twice; then it goes on to the end."""
    model, prompts = tiny_model(), rows(6)
    asking = Asking(model="m", samples=4, max_new_tokens=40, sampling=Sampling(temperature=1.5))

    def work(out: Path) -> dict[str, Any]:
        with Engine(model, tiny_tokenizer, slots=3) as engine:
            return answer_batch(prompts, engine, ids_of, out=out, asking=asking, filters=Filters())

    def ids_of(messages: Sequence[Message]) -> list[int]:
        return list(tiny_tokenizer.encode(messages[-1].content))

    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    work(whole)
    journal = tmp_path / "out.jsonl.journal"
    for answered in (5, 13):
        child = forked(lambda: work(out))
        while not journal.exists() or journal.read_bytes().count(b"\n") <= answered:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before it could be killed"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not out.exists()
    ledger = work(out)
    assert 13 <= ledger["answered_before"] < 24
    assert out.read_bytes() == whole.read_bytes()


def test_nothing_is_answered_twice_but_what_changed(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    batch(out, Scripted(), rows(), samples=2)
    again, more, changed = Scripted(), Scripted(), Scripted()
    batch(out, again, rows(), samples=2)
    batch(out, more, rows(), samples=3)
    batch(out, changed, [*rows(2), *read_prompts([{}, {}, {"prompt": "new"}][2:])], samples=3)
    assert (again.answered, more.answered, changed.answered) == (0, 3, 3)


def test_answers_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    batch(out, Scripted(), rows())
    asking = Asking(model="m", samples=3, seed=5)
    with pytest.raises(RunError, match="seed = 0, now it is 5"):
        answer_batch(rows(), Scripted(), encode, out=out, asking=asking, filters=Filters())
    (tmp_path / "out.jsonl.journal").write_text("no journal\n")
    with pytest.raises(RunError, match="not a journal"):
        batch(out, Scripted(), rows())


def test_every_answer_is_kept_or_dropped_for_a_reason(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    prompts = rows(4)
    ledger = batch(out, Scripted(), prompts, only_stopped=True, near=0.1)
    assert ledger["answers"] == 12 == ledger["kept"] + sum(ledger["dropped"].values())
    assert ledger["dropped"]["cut before its end"] == 4
    assert len(lines(out)) == ledger["kept"]


def candidate(answer: str, *, question: str = "q", reason: str = "stop") -> Candidate:
    return Candidate(place="f:1", row={"prompt": question}, question=question, answer=answer, reason=reason)


LONG = "the quick brown fox jumps over the lazy dog while the cat sleeps in the warm sun of the late afternoon"


@pytest.mark.parametrize(
    ("filters", "found", "expected"),
    [
        ({}, [candidate(" "), candidate("yes")], ["empty", None]),
        ({"min_length": 4}, [candidate("yes"), candidate("yeah")], ["too short", None]),
        ({"max_length": 3}, [candidate("yeah"), candidate(" yes ")], ["too long", None]),
        ({"only_stopped": True}, [candidate("a", reason="length"), candidate("b", reason="stop_string")],
         ["cut before its end", None]),
        ({}, [candidate("", reason="context")], ["prompt longer than the model's context"]),
        ({}, [candidate("yes"), candidate("yes "), candidate("yes", question="r")], [None, "duplicate", None]),
        ({"near": 0.7}, [candidate(LONG), candidate(LONG + " today"), candidate("other words here")],
         [None, "near duplicate", None]),
        ({"near": None}, [candidate(LONG), candidate(LONG + " today")], [None, None]),
        ({"verify": "json:loads_of"}, None, None),
    ],
)  # fmt: skip
def test_filters(filters: dict[str, Any], found: list[Candidate] | None, expected: Any) -> None:
    if found is None:
        with pytest.raises(RecipeError, match="loads_of"):
            verdicts([], Filters(**filters))
    else:
        assert verdicts(found, Filters(**filters)) == expected


def test_known_texts_are_not_made_again() -> None:
    assert verdicts([candidate(LONG), candidate("quite another task")], Filters(near=0.8), known=[LONG]) == [
        "near duplicate",
        None,
    ]


def test_verifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_checks.py").write_text(
        "def right(row, answer):\n    return answer == row['prompt'][::-1]\ndef broken(row, answer):\n    1 / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows = [candidate("cba", question="abc"), candidate("abc", question="abc")]
    assert verdicts(rows, Filters(verify="my_checks:right")) == [None, "refused by the verifier"]
    with pytest.raises(DataError, match="f:1: the verifier raised ZeroDivisionError"):
        verdicts(rows, Filters(verify="my_checks:broken"))
    with pytest.raises(RecipeError, match="cannot be imported"):
        verdicts(rows, Filters(verify="no_such_module:right"))


def test_prompts_from_rows() -> None:
    turns = [{"role": "User", "content": "a"}, {"role": "assistant", "content": "b"}]
    data = [{"prompt": "p"}, {"messages": turns}, {"prompt": turns[:1]}]
    assert [[(m.role, m.content) for m in prompt.messages] for prompt in read_prompts(data)] == [
        [("user", "p")], [("user", "a")], [("user", "a")],
    ]  # fmt: skip
    [filled] = read_prompts([{"text": "{lang} x", "lang": 3}], template="To {lang}: {text} {not a column}")
    assert filled.messages[0].content == "To 3: {lang} x {not a column}"
    with pytest.raises(DataError, match=r"row:1: the prompt template names 'nope', and the row has text"):
        list(read_prompts([{"text": "x"}], template="{nope}"))
    with pytest.raises(DataError, match="no `prompt`"):
        list(read_prompts([{"text": "x"}]))


def test_tasks_from_seeds() -> None:
    tasks = read_tasks([{"instruction": f"do {n}\nwell"} for n in range(5)] + [{"prompt": "do 0 well"}])
    assert tasks == [f"do {n} well" for n in range(5)]
    found = list(seed_prompts(tasks, shots=3, count=20, seed=0))
    assert found == list(seed_prompts(tasks, shots=3, count=20, seed=0))
    assert len({prompt.digest for prompt in found}) > 10
    for prompt in found:
        assert sum(task in prompt.messages[0].content for task in tasks) == 3
    with pytest.raises(DataError, match="6 tasks are to be shown, and the file has 5"):
        list(seed_prompts(tasks, shots=6, count=1, seed=0))
