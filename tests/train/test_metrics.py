"""Metrics add up over micro-batches and start anew after each read."""

import pytest
import torch

from honed.loss.head import TokenScores
from honed.train.metrics import StepMetrics, memory_gb

CPU = torch.device("cpu")


def scores(entropy: list[float], correct: list[bool]) -> TokenScores:
    return TokenScores(
        nll_N=torch.zeros(len(entropy)), entropy_N=torch.tensor(entropy), correct_N=torch.tensor(correct)
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
    assert "entropy" not in logs and logs["num_tokens"] == 10 and logs["tokens_per_second"] == 0


def test_memory_grows_when_it_is_used() -> None:
    before = memory_gb(CPU)
    block = torch.ones(100_000_000, dtype=torch.float32)
    assert memory_gb(CPU) - before > 0.2 and block[-1] == 1
