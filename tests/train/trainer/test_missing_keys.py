"""Going on with a model of tied weights frightens nobody; a weight that is really absent is told of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from honed.train.trainer.tied_weights import lacking
from honed.train.trainer.trainer import SFTTrainer

SAYS = "missing keys in the checkpoint"


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What transformers' Trainer logs; its loggers do not propagate."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("transformers.trainer"), Keep()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)  # commands that ran before may have made transformers quieter
    yield lines
    logger.setLevel(before)
    logger.removeHandler(handler)


@pytest.mark.parametrize("tied", [True, False])
def test_resuming_and_the_best_model_of_tied_weights(
    tied: bool, make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any], chat_rows: Any, said: list[str]
) -> None:
    saves = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    best = {**saves, "load_best_model_at_end": True, "eval_dataset": chat_rows[:2]}

    def begin(steps: int) -> SFTTrainer:
        return make(chat_rows, model=tiny_model(tie_word_embeddings=tied), max_steps=steps, **best)

    begin(2).train()
    resumed = begin(3)
    resumed.train(resume_from_checkpoint=True)
    assert not [line for line in said if SAYS in line]
    head, embeddings = resumed.model.get_output_embeddings(), resumed.model.get_input_embeddings()
    assert (head.weight is embeddings.weight) is tied


def test_a_weight_that_is_absent_is_told_of(make: Callable[..., SFTTrainer], chat_rows: Any, said: list[str]) -> None:
    trainer = make(chat_rows)
    state = dict(trainer.model.state_dict())
    del state["lm_head.weight"], state["model.norm.weight"]
    trainer._issue_warnings_after_load(trainer.model.load_state_dict(state, strict=False))
    assert [line for line in said if SAYS in line and "model.norm.weight" in line and "lm_head" not in line]


def test_tied_under_any_name() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    assert lacking(model, ["b.weight", "b.bias", "no.such"]) == ["b.bias", "no.such"]
    assert lacking(model, ["a.weight", "b.weight"]) == ["a.weight", "b.weight"]


def test_old_names_are_one_note(make: Callable[..., SFTTrainer], chat_rows: Any) -> None:
    old = {"warmup_ratio": 0.1, "use_liger": False, "evaluation_strategy": "no"}
    trainer = make(chat_rows, **old, trainer={"dataset_num_proc": 1})
    about = [note for note in trainer.notes if "warmup_ratio" in note]
    assert about == [
        "warmup_ratio is called warmup_steps now. use_liger is called use_liger_kernel now. evaluation_strategy is "
        "called eval_strategy now. dataset_num_proc is an option of SFTConfig now."
    ]
