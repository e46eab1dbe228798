"""Token scores, held against plain logits and torch's cross entropy in float64."""

import pytest
import torch
import torch.nn.functional as F

from honed.loss.head import IGNORE_INDEX, ScoringHead, score_tokens

N, D, V = 23, 6, 31


def draw(bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    h = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    return h, weight, torch.randint(V, (N,)), torch.randn(V, dtype=torch.float64, requires_grad=True) if bias else None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tile_elements", [1, V, 5 * V + 3, N * V, 10**6])
def test_scores_and_gradients_equal_plain_logits(bias: bool, tile_elements: int) -> None:
    h, weight, targets, b = draw(bias)
    scores = score_tokens(h, weight, targets, bias_V=b, extras=True, tile_elements=tile_elements)
    logits = F.linear(h, weight, b)
    expected = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(scores.nll_N, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scores.entropy_N, torch.distributions.Categorical(logits=logits).entropy())
    assert scores.correct_N is not None and torch.equal(scores.correct_N, logits.argmax(-1) == targets)
    weights = torch.rand(N, dtype=torch.float64)
    inputs = [h, weight, *([b] if b is not None else [])]
    found = torch.autograd.grad((scores.nll_N * weights).sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), inputs), rtol=1e-11, atol=1e-11)


def test_half_precision_hidden_states_are_scored_in_float32() -> None:
    h, weight, targets, _ = draw(False)
    scores = score_tokens(h.bfloat16(), weight.bfloat16(), targets)
    assert scores.nll_N.dtype == torch.float32


def test_no_trained_token_gives_no_score_and_a_zero_gradient() -> None:
    h, weight, _, _ = draw(False)
    scores = score_tokens(h[:0], weight, torch.empty(0, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(scores.nll_N.sum(), [weight])
    assert scores.nll_N.shape == (0,) and not gradient.any()


@pytest.mark.parametrize("bias", [False, True])
def test_the_scoring_head_is_the_linear_layer_outside_and_scores_inside(bias: bool) -> None:
    head = torch.nn.Linear(D, V, bias=bias, dtype=torch.float64)
    scoring = ScoringHead(head)
    h = torch.randn(2, 5, D, dtype=torch.float64)
    targets = torch.full((2, 5), IGNORE_INDEX)
    targets[0, 1:4], targets[1, 0] = torch.tensor([3, 0, V - 1]), 7
    assert scoring.weight is head.weight and scoring.bias is head.bias
    assert set(scoring.state_dict()) == set(head.state_dict())
    assert torch.equal(scoring(h), head(h))
    with scoring.scoring(targets):
        output = scoring(h)
    expected = F.cross_entropy(head(h).reshape(-1, V), targets.reshape(-1), reduction="none")
    torch.testing.assert_close(scoring.take(output).nll_N, expected[targets.reshape(-1) != IGNORE_INDEX])
    assert torch.equal(scoring(h), head(h))


def test_an_error_inside_leaves_the_head_as_it_was() -> None:
    scoring = ScoringHead(torch.nn.Linear(D, V))
    with pytest.raises(KeyError), scoring.scoring(torch.zeros(1, 1, dtype=torch.int64)):
        raise KeyError
    assert scoring(torch.randn(1, 1, D)).shape == (1, 1, V)


def test_a_forward_that_never_reached_the_head_is_noticed() -> None:
    scoring = ScoringHead(torch.nn.Linear(D, V))
    with pytest.raises(RuntimeError, match="LM head"):
        scoring.take(torch.zeros(1, 1, 1))
