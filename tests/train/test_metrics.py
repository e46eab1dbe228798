"""Metrics add up over micro-batches and start anew after each read."""

import json

import psutil
import pytest
import torch

from honed.ops.linear_cross_entropy import TokenScores
from honed.train.metrics import StepMetrics, memory_gb

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
    assert "entropy" not in logs and logs["num_tokens"] == 10 and logs["tokens_per_second"] == 0


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
