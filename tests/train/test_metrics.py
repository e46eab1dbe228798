"""Metrics add up over micro-batches and start anew after each read."""

import json
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
from transformers import DataCollatorForSeq2Seq

from honed.ops.linear_cross_entropy import TokenScores
from honed.train.forward.seams import known_counts
from honed.train.metrics import StepMetrics, describe, memory_gb
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

CPU = torch.device("cpu")


def scores(entropy: list[float], correct: list[bool]) -> TokenScores:
    return TokenScores(
        loss=torch.zeros(()),
        nll_N=torch.zeros(len(entropy)),
        entropy_N=torch.tensor(entropy),
        correct_N=torch.tensor(correct),
    )


def test_means_are_over_tokens_not_over_micro_batches() -> None:
    metrics = StepMetrics(CPU)
    metrics.add(scores([1.0], [True]), tokens=10)
    metrics.add(scores([2.0, 2.0, 2.0], [False, False, True]), tokens=30)
    logs = metrics.read()
    assert (logs["entropy"], logs["mean_token_accuracy"], logs["num_tokens"]) == (1.75, 0.5, 40)
    assert logs["tokens_per_second"] / logs["trained_tokens_per_second"] == pytest.approx(10)


def test_a_read_starts_anew_but_the_run_goes_on_counting() -> None:
    metrics = StepMetrics(CPU)
    metrics.add(scores([1.0], [True]), tokens=10)
    metrics.read()
    logs = metrics.read()
    assert "entropy" not in logs and logs["num_tokens"] == 10 and "tokens_per_second" not in logs


def test_peak_memory_is_at_least_what_is_used_now() -> None:
    used, there = psutil.Process().memory_info().rss, psutil.virtual_memory().total
    assert 0.9 * used <= memory_gb(CPU) * 1e9 <= there


def test_counting_goes_on_from_a_state() -> None:
    whole, first = StepMetrics(CPU), StepMetrics(CPU)
    for metrics in (whole, first):
        metrics.add(scores([9.0], [True]), tokens=5)
        metrics.read()
        metrics.add(scores([1.0, 0.1], [True, False]), tokens=10)
    second = StepMetrics(CPU)
    second.restore(json.loads(json.dumps(first.state())))
    found, expected = [], []
    for metrics, logs in ((second, found), (whole, expected)):
        metrics.add(scores([2.0], [False]), tokens=30)
        read = metrics.read()
        logs += [read[key] for key in ("entropy", "mean_token_accuracy", "num_tokens")]
    assert found == expected and found[2] == 45


def own_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class OwnTrainer(SFTTrainer):
    """A loss in the way that TRL scripts override it."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        loss = own_loss(model(input_ids=inputs["input_ids"]), labels)
        return (loss, None) if return_outputs else loss


@pytest.mark.parametrize("way", ["compute_loss_func", "compute_loss", "own collator"])
def test_tokens_are_counted_beside_a_loss_of_ones_own(  # noqa: PLR0917
    way: str, make: Callable[..., SFTTrainer], quick: Any, tiny_model: Any, tiny_tokenizer: Any, chat_rows: Any
) -> None:
    """As many as honed's own loss counts on the same rows."""
    expected = make(chat_rows, num_train_epochs=1)
    expected.train()
    own: dict[str, Any] = {"compute_loss_func": own_loss}
    if way == "own collator":
        own["data_collator"] = DataCollatorForSeq2Seq(tiny_tokenizer)
    if way == "compute_loss":
        args = SFTConfig(**quick, num_train_epochs=1, train_on="assistant")
        trainer: SFTTrainer = OwnTrainer(tiny_model(), args, None, chat_rows, processing_class=tiny_tokenizer)
    else:
        trainer = make(chat_rows, model=tiny_model(), num_train_epochs=1, trainer=own)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    theirs = [line for line in expected.state.log_history if "loss" in line]
    assert [line["num_tokens"] for line in lines] == [line["num_tokens"] for line in theirs]
    for line, their in zip(lines, theirs, strict=True):
        share = line["trained_tokens_per_second"] / line["tokens_per_second"]
        assert share == pytest.approx(their["trained_tokens_per_second"] / their["tokens_per_second"])


def test_a_speed_that_is_not_known_is_left_out() -> None:
    assert known_counts({"pixel_values": torch.zeros(1)}) == {"tokens": 0, "trained": 0}
    assert known_counts({"input_ids": torch.ones(2, 3)}) == {"tokens": 6, "trained": 0}
    metrics = StepMetrics(CPU)
    metrics.count(tokens=6, trained=0)
    logs = {"loss": 1.0, **metrics.read()}
    assert "tok/s" in describe(logs) and "trained" not in describe(logs)
    assert "tok/s" not in describe({"loss": 1.0, **metrics.read()})
