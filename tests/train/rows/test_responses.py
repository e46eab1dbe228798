"""train_on_responses_only against the spans that a regular expression finds, and what notebooks read afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

from honed import train_on_responses_only
from honed.errors import DataError, RecipeError
from honed.train.trainer.trainer import SFTTrainer

PARTS = {"instruction_part": "<|im_start|>user\n", "response_part": "<|im_start|>assistant\n"}
TALKS = [
    [("user", "why"), ("assistant", "yes two"), ("user", "and 语言 é"), ("assistant", "no 😀\n\nword")],
    [("system", "short"), ("user", "one"), ("assistant", "three")],
]


def talk_text(turns: list[tuple[str, str]]) -> str:
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)


ROWS = [{"text": talk_text(turns)} for turns in TALKS]
EXPECTED = [
    "".join(re.findall(r"<\|im_start\|>assistant\n(.*?)(?=<\|im_start\|>user\n|\Z)", row["text"], re.DOTALL))
    for row in ROWS
]


def trained_text(tokenizer: Any, row: Any) -> str:
    return str(tokenizer.decode([label for label in row["labels"] if label != -100]))


@pytest.mark.parametrize("custom", [False, True])
def test_responses_alone_are_trained(make: Callable[..., SFTTrainer], tiny_tokenizer: Any, custom: bool) -> None:
    own = {"data_collator": DataCollatorForSeq2Seq(tokenizer=tiny_tokenizer)} if custom else {}
    given = [dict(row) for row in ROWS]
    trainer = make(given, train_on=None, eval_dataset={"held": ROWS[:1]}, trainer=own, max_steps=1)
    before = [row["labels"] for row in trainer.train_dataset]
    assert train_on_responses_only(trainer, **PARTS, force_match=False, num_proc=2) is trainer
    for rows in (trainer.train_dataset, trainer.eval_dataset["held"]):
        for number in range(len(rows)):
            assert trained_text(tiny_tokenizer, rows[number]).removesuffix("<|im_end|>") == EXPECTED[number]
    assert given == ROWS and before != [row["labels"] for row in trainer.train_dataset]
    labels = [row["labels"] for row in trainer.train_dataset]
    assert trainer.ledger is not None
    assert trainer.ledger.trained_tokens == sum(label != -100 for row in labels for label in row)
    assert trainer.train().global_step == 1


def test_packed_documents_and_masks_of_their_own(make: Callable[..., SFTTrainer], tiny_tokenizer: Any) -> None:
    """What was not trained before stays so: here an answer whose row says `train: false`."""
    messages = [[{"role": role, "content": content} for role, content in turns] for turns in TALKS]
    messages[0][1]["train"] = False  # type: ignore[assignment]
    trainer = make([{"messages": m} for m in messages], train_on="assistant", packing=True)
    train_on_responses_only(trainer, **PARTS)
    assert len(trainer.train_dataset) == 1
    kept = trained_text(tiny_tokenizer, trainer.train_dataset[0])
    assert "yes two" not in kept and "no 😀" in kept and "three" in kept


def test_rows_without_a_response_are_told_of(make: Callable[..., SFTTrainer]) -> None:
    trainer = make([*ROWS, {"text": "plain words"}], train_on=None)
    train_on_responses_only(trainer, **PARTS)
    assert "nothing is trained in 1 of 3 train documents (the first is number 2)" in trainer.notes[-1]
    with pytest.raises(DataError, match=r"No train row holds '### Answer:'.*begins '<\|im_start\|>user"):
        train_on_responses_only(make(ROWS, train_on=None), "### Q:", "### Answer:")


def test_what_cannot_be_masked_is_refused(make: Callable[..., SFTTrainer], tiny_tokenizer: Any) -> None:
    with pytest.raises(RecipeError, match="needs instruction_part and response_part"):
        train_on_responses_only(make(ROWS, train_on=None))
    collator = DataCollatorForLanguageModeling(tiny_tokenizer, mlm=False)
    with pytest.raises(RecipeError, match="makes its own labels"):
        train_on_responses_only(make(ROWS, train_on=None, trainer={"data_collator": collator}), **PARTS)
    with pytest.raises(RecipeError, match="StreamDataset"):
        train_on_responses_only(make(ROWS, train_on=None, streaming=True, max_steps=1), **PARTS)


def test_the_function_for_map(tiny_tokenizer: Any) -> None:
    labels = train_on_responses_only(None, **PARTS, tokenizer=tiny_tokenizer, return_function=True)
    ids = tiny_tokenizer([row["text"] for row in ROWS], add_special_tokens=False)["input_ids"]
    found = labels({"input_ids": ids})["labels"]
    assert [trained_text(tiny_tokenizer, {"labels": row}) for row in found] == EXPECTED


def test_the_trainer_shows_its_rows(make: Callable[..., SFTTrainer], capsys: pytest.CaptureFixture[str]) -> None:
    """By the same mask as the row that training reads, of packed rows and of a custom collator's."""
    trainer = make([{"messages": [{"role": r, "content": c} for r, c in turns]} for turns in TALKS], packing=True)
    trainer.show()
    printed = capsys.readouterr().out
    row = trainer.train_dataset[0]
    assert printed.startswith(f"row 0 of {len(trainer.train_dataset)}, counted from 0: ")
    assert f"{len(row['input_ids'])} tokens in 2 documents, {np.count_nonzero(row.weights)} of them" in printed
    marked = "".join(re.findall("«(.*?)»", printed, re.DOTALL)[:-1])  # the last is the legend
    assert marked == trained_text(trainer.processing_class, row)
    with pytest.raises(DataError, match="no row 5 among 1"):
        trainer.show(5)
    with pytest.raises(DataError, match="holds no prepared rows"):
        trainer.show(0, [1, 2])
