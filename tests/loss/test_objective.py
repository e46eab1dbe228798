"""The one shift and the one denominator."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from honed.loss.head import IGNORE_INDEX, TokenScores
from honed.loss.objective import loss_sum, next_token_targets, token_weights, total_weight


def test_targets_stand_one_to_the_left() -> None:
    labels = torch.tensor([[IGNORE_INDEX, 11, 12, IGNORE_INDEX], [IGNORE_INDEX, 21, IGNORE_INDEX, 23]])
    expected = torch.tensor([[11, 12, IGNORE_INDEX, IGNORE_INDEX], [21, IGNORE_INDEX, 23, IGNORE_INDEX]])
    assert torch.equal(next_token_targets(labels), expected)


def test_targets_do_not_change_the_labels() -> None:
    labels = torch.tensor([[IGNORE_INDEX, 1, 2]])
    next_token_targets(labels)
    assert labels.tolist() == [[IGNORE_INDEX, 1, 2]]


@given(st.lists(st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=3, max_size=3), min_size=1, max_size=4))
def test_weights_follow_their_tokens(rows: list[list[float]]) -> None:
    """Against a plain Python loop over the labels."""
    weights = torch.tensor(rows)
    weights[:, 0] = 0.0
    labels = torch.where(weights > 0, torch.arange(weights.numel()).reshape(weights.shape) + 5, IGNORE_INDEX)
    targets = next_token_targets(labels)
    expected = [w for row in weights.tolist() for w in row if w > 0]
    assert token_weights(labels, weights, targets).tolist() == expected
    assert torch.isclose(total_weight(labels, weights), torch.tensor(expected).sum())
    assert total_weight(labels, None) == len(expected) == len(token_weights(labels, None, targets))


def test_the_sum_is_weighted() -> None:
    scores = TokenScores(nll_N=torch.tensor([1.0, 2.0, 4.0]))
    assert loss_sum(scores, torch.tensor([1.0, 0.5, 0.25])) == 3.0
