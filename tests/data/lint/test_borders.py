"""Where prompt and answer meet: found as the tokenizer itself tells it, with both texts in full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from honed.data.example import PromptCompletion, Source
from honed.data.lint import borders
from honed.data.lint.borders import Borders
from honed.data.lint.lint import check
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.templates.view import Piece, View

SOURCE = Source(file="f", row=1)


def found(tokenizer: Any, pairs: list[tuple[str, str]]) -> list[bool]:
    """Whether each pair's border is reported."""
    planned = []
    for prompt, completion in pairs:
        pieces = (Piece(text=prompt), Piece(text=completion, weight=1.0, turn=0))
        planned.append(
            (PromptCompletion(prompt=prompt, completion=completion, source=SOURCE), [View(pieces=pieces)]),
        )
    return [detail != "" for detail in Borders(tokenizer).find(planned)]


def differ(tokenizer: Any, prompt: str, completion: str) -> bool:
    """Whether one text has other ids than the two."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return ids(prompt) + ids(completion) != ids(prompt + completion)


PARTS = ["why", "fox", " ", "\n", "a", "answers", "the ", " no", "è", "好", "1", ":"]
TEXTS = st.lists(st.sampled_from(PARTS), min_size=1).map("".join)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pair=st.tuples(TEXTS, TEXTS))
def test_what_stands_near_tells_of_the_whole(pair: tuple[str, str], tiny_tokenizer: Any) -> None:
    assert found(tiny_tokenizer, [pair]) == [differ(tiny_tokenizer, *pair)]


@pytest.mark.parametrize("name", ["qwen_tokenizer", "minimind_tokenizer"])
@pytest.mark.parametrize("ending", ["", " ", "\n", "\nAnswer:", "\nAnswer: "])
def test_real_rows_and_tokenizers(name: str, ending: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setattr(borders, "FIRST", 10_000)
    tokenizer = AutoTokenizer.from_pretrained(shared_data / name)
    lines = (shared_data / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[:150]
    pairs = [(row["question"] + ending, row["answer"]) for row in map(json.loads, lines)]
    for line in (shared_data / "medicalgpt_medical_sft_1k.jsonl").read_text(encoding="utf-8").splitlines()[:50]:
        question, answer = (turn["value"] for turn in json.loads(line)["conversations"][:2])
        pairs.append((question + ending, answer))
    assert found(tokenizer, pairs) == [differ(tokenizer, *pair) for pair in pairs]


def test_the_check_names_a_row_and_both_tokenisations(tiny_tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "why two "}, {"role": "assistant", "content": "three"}]
    rows = [
        {"prompt": "why two", "completion": " three"},
        {"prompt": "why two ", "completion": "three"},
        {"prompt": turns[:1], "completion": turns[1:]},
        {"text": "why two "},
        {"prompt": "", "completion": "three"},
        {"prompt": "why ", "completion": "<|im_end|> three"},
    ]
    options = PrepareOptions(max_length=512)
    [finding] = [f for f in check(rows, options, tokenizer=tiny_tokenizer).findings if f.kind.name == "border"]
    assert (finding.count, [spot.source for spot in finding.spots]) == (1, ["row:2"])
    assert finding.spots[0].detail == "trained as ' ' + 'th' + 'ree'; as one text ' three'"
    trained = prepare(rows[1:2], tiny_tokenizer, options).rows[0].input_ids.tolist()
    served = tiny_tokenizer("why two ")["input_ids"]
    assert trained == [*served, *tiny_tokenizer("three")["input_ids"], tiny_tokenizer.eos_token_id]


def test_an_answer_of_a_conversation_too(shared_data: Path) -> None:
    """Qwen's tokenizer joins the line ends of `assistant\\n` and of an answer that begins with one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "qwen_tokenizer")
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]}
        for text in ("Hello", "\nHello", " Hello")
    ]
    [finding] = [f for f in check(rows, PrepareOptions(), tokenizer=tokenizer).findings if f.kind.name == "border"]
    assert (finding.count, finding.spots[0].source) == (1, "row:2")
    prompt = tokenizer.apply_chat_template(rows[1]["messages"][:1], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(rows[1]["messages"])["input_ids"]
    assert whole[: len(prompt)] != prompt  # why what is trained is not the text in one go
    trained = prepare(rows[1:2], tokenizer, PrepareOptions()).rows[0].input_ids.tolist()
    assert trained[: len(prompt)] == prompt


def test_of_much_data_a_sample_is_looked_at_and_the_check_says_so(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(borders, "FIRST", 10)
    rows = [{"prompt": f"why {n} ", "completion": "three"} for n in range(1, 101)]
    checked = check(rows, PrepareOptions(max_length=512), tokenizer=tiny_tokenizer)
    [finding] = [f for f in checked.findings if f.kind.name == "border"]
    assert finding.count == 10 + 4
    assert checked.notes == ("The border of prompt and answer was checked in a sample: 14 of 100 rows.",)
