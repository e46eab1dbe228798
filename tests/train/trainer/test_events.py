"""Callbacks get the events that transformers' Trainer sends, in its order and with its arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]
FLAGS = ("should_training_stop", "should_epoch_stop", "should_evaluate", "should_log")


class Recorder(TrainerCallback):
    """Records each event with its step, the flags (but for saving) and the names of its arguments; sets one flag."""

    def __init__(self, event: str, flag: str) -> None:
        self.events: list[Any] = []
        for name in EVENTS:
            setattr(self, name, self._recording(name, flag if name == event else ""))

    def _recording(self, name: str, flag: str) -> Callable[..., Any]:
        def record(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            given = sorted(key for key, value in kwargs.items() if value is not None)
            flags = [one for one in FLAGS if getattr(control, one)]
            self.events.append((name, state.global_step, flags, given))
            if flag and state.global_step == 1:
                setattr(control, flag, True)
            return control

        return record


def in_order(events: list[Any]) -> list[Any]:
    """honed saves at an epoch's end after on_epoch_end, transformers before it."""
    names = [event[0] for event in events]
    for place in range(len(events) - 1):
        if names[place : place + 2] == ["on_epoch_end", "on_save"]:
            events[place], events[place + 1] = events[place + 1], events[place]
    return events


@pytest.mark.parametrize(
    ("event", "flag"),
    [("", ""), *((event, flag) for event in ("on_step_end", "on_evaluate") for flag in (*FLAGS, "should_save"))],
)
def test_events_are_transformers_own(
    event: str, flag: str, *, tiny_model: Any, tiny_tokenizer: Any, chat_rows: Any, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "num_train_epochs": 2, "logging_steps": 1,
        "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 1,
        "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True,
    }  # fmt: skip
    seen = [Recorder(event, flag), Recorder(event, flag)]
    ours = SFTTrainer(
        tiny_model(),
        args=SFTConfig(output_dir=str(tmp_path / "ours"), **options),
        train_dataset=chat_rows,
        eval_dataset=chat_rows[:3],
        processing_class=tiny_tokenizer,
        callbacks=[seen[0]],
    )
    prepared = [ours.train_dataset[n].input_ids.tolist() for n in range(len(chat_rows))]
    rows = [{"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)} for ids in prepared]
    theirs = Trainer(
        tiny_model(),
        args=TrainingArguments(output_dir=str(tmp_path / "theirs"), **options),
        data_collator=DataCollatorForSeq2Seq(tiny_tokenizer),
        train_dataset=rows,
        eval_dataset=rows[:3],
        processing_class=tiny_tokenizer,
        callbacks=[seen[1]],
    )
    for trainer in (ours, theirs):
        trainer.train()
        trainer.predict(trainer.train_dataset if trainer is theirs else chat_rows)
    assert in_order(seen[0].events) == in_order(seen[1].events)
    assert {"on_substep_end", "on_predict", "on_evaluate"} <= {name for name, *_ in seen[0].events}
