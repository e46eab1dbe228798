"""That user turns are trained because nothing was chosen is said once, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from honed.data.batch.completion_collator import DataCollatorForCompletionOnlyLM
from honed.train.options.config import SFTConfig
from honed.train.rows.notes import USER_TURNS_TRAINED
from honed.train.rows.rows import Datasets

TALK = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]
TALKS = [{"messages": TALK}, {"messages": TALK}]


def made(rows: Any, tokenizer: Any, collator: Any = None, **options: Any) -> Datasets:
    args = SFTConfig(use_cpu=True, report_to="none", **options)
    data = Datasets(args, tokenizer, formatting_func=None, collator=collator, flat=collator is None)
    data.make("train", rows)
    data.make("eval", rows)
    return data


def test_it_is_said_where_user_turns_are_trained(tiny_tokenizer: Any) -> None:
    data = made(TALKS, tiny_tokenizer)
    weights = data.prepared["train"].rows[0].weights
    assert np.array_equal(weights, [0, *[1] * (len(weights) - 1)])
    assert data.notes.count(USER_TURNS_TRAINED) == 1


@pytest.mark.parametrize(
    "options",
    [{"assistant_only_loss": True}, {"train_on": "assistant"}, {"train_on": "all"}, {"completion_only_loss": False}],
)
def test_it_is_not_said_where_something_was_chosen(options: dict[str, Any], tiny_tokenizer: Any) -> None:
    assert USER_TURNS_TRAINED not in made(TALKS, tiny_tokenizer, **options).notes


@pytest.mark.parametrize(
    "row", [{"text": "why so"}, {"prompt": "why", "completion": " so"}, {"prompt": TALK[:1], "completion": TALK[1:]}]
)
def test_it_is_not_said_of_rows_without_user_turns_that_are_trained(row: dict[str, Any], tiny_tokenizer: Any) -> None:
    assert USER_TURNS_TRAINED not in made([row], tiny_tokenizer).notes


def test_it_is_not_said_where_a_collator_masks(tiny_tokenizer: Any) -> None:
    collator = DataCollatorForCompletionOnlyLM("<|im_start|>assistant", tokenizer=tiny_tokenizer)
    assert USER_TURNS_TRAINED not in made(TALKS, tiny_tokenizer, collator).notes
