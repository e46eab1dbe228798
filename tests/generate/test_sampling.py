"""Tokens are chosen from the distribution that transformers' own logits processors leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.errors import RecipeError
from honed.generate import sampling as module
from honed.generate.sampling import Sampling, candidates, choose, draw, penalised

SIZE = 97


def logits(rows: int = 3, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 3


def of_transformers(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities (N, V) after transformers' warpers, in the order of its `generate`."""
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warpers += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    for warp in warpers:
        scores = warp(None, scores)
    return torch.softmax(scores, -1)


def dense(probabilities: torch.Tensor, tokens: torch.Tensor, size: int) -> torch.Tensor:
    whole = torch.zeros(len(tokens), size).scatter_(-1, tokens, probabilities)
    return whole / whole.sum(-1, keepdim=True)


@settings(max_examples=80, deadline=None)
@given(
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0.2, 3),
        top_k=st.sampled_from([0, 1, 5, 40, 500]),
        top_p=st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]),
        min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    ),
    few=st.booleans(),
    seed=st.integers(0, 5),
)
def test_the_distribution_is_that_of_transformers(sampling: Sampling, few: bool, seed: int) -> None:
    scores = logits(seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CANDIDATES", 4 if few else 1024)  # few: the whole vocabulary must be sorted
        found = dense(*candidates(scores, sampling), SIZE)
    torch.testing.assert_close(found, of_transformers(scores, sampling), rtol=1e-4, atol=1e-6)


def test_draws_follow_the_distribution() -> None:
    """Evenly spread uniform numbers hit each token as often as it is likely."""
    sampling = Sampling(temperature=1.3, top_k=12, min_p=0.02)
    scores = logits(1)
    count = 20_000
    tokens = choose(scores.expand(count, -1), sampling, [[]] * count, [(n + 0.5) / count for n in range(count)])
    shares = torch.bincount(torch.tensor(tokens), minlength=SIZE) / count
    torch.testing.assert_close(shares, of_transformers(scores, sampling)[0], rtol=0, atol=2 / count)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_a_draw_at_either_end_takes_a_token_that_may_be_drawn(uniform: float) -> None:
    probabilities = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]])
    tokens = torch.tensor([[10, 11, 12, 13, 14]])
    assert draw(probabilities, tokens, [uniform]) == [11 if uniform == 0 else 13]


def test_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    scores, seen = logits(2), [[1, 5, 5, 7], [0, 96, 3, 3]]
    expected = RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor(seen), scores.clone())
    before = scores.clone()
    torch.testing.assert_close(penalised(scores, 1.4, seen), expected)
    assert torch.equal(scores, before)


def test_temperature_0_takes_the_likeliest() -> None:
    scores = logits(4)
    assert choose(scores, Sampling(top_k=3, top_p=0.5), [[]] * 4, [0.99] * 4) == scores.argmax(-1).tolist()


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"min_p": 1.5},
     {"repetition_penalty": 0.0}],
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Sampling(**wrong)
