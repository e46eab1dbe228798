"""The one shift, the one denominator, and which losses there are."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_pt_utils import LabelSmoother

from honed.errors import RecipeError
from honed.loss.head import score_logits
from honed.loss.objective import IGNORE_INDEX, Objective, next_token_targets, targets_of, total_weight


def test_targets_stand_one_to_the_left() -> None:
    labels = torch.tensor([[IGNORE_INDEX, 11, 12, IGNORE_INDEX], [IGNORE_INDEX, 21, IGNORE_INDEX, 23]])
    expected = torch.tensor([[11, 12, IGNORE_INDEX, IGNORE_INDEX], [21, IGNORE_INDEX, 23, IGNORE_INDEX]])
    assert torch.equal(next_token_targets(labels), expected)


def test_targets_do_not_change_the_labels() -> None:
    labels = torch.tensor([[IGNORE_INDEX, 1, 2]])
    next_token_targets(labels)
    assert labels.tolist() == [[IGNORE_INDEX, 1, 2]]


@given(
    rows=st.lists(st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=3, max_size=3), min_size=1, max_size=4),
    first=st.sampled_from([0.0, 1.0]),
)
def test_targets_and_weights_follow_their_tokens(rows: list[list[float]], first: float) -> None:
    """Against a plain Python loop over the labels; a label at the start of a row is predicted by nothing."""
    weights = torch.tensor(rows)
    weights[:, 0] = first
    labels = torch.where(weights > 0, torch.arange(weights.numel()).reshape(weights.shape) + 5, IGNORE_INDEX)
    places = [(r, c) for r in range(len(rows)) for c in range(1, 3) if weights[r, c] > 0]
    expected = [(3 * r + c - 1, int(labels[r, c]), float(weights[r, c])) for r, c in places]
    for count in (None, len(places)):
        found = targets_of(labels, weights, count=count)
        assert [*zip(found.index_N.tolist(), found.ids_N.tolist(), found.weights_N.tolist(), strict=True)] == expected
    assert torch.isclose(total_weight(labels, weights), torch.tensor([w for *_, w in expected]).sum())
    assert targets_of(labels, None).weights_N.tolist() == [1.0] * len(places)
    assert total_weight(labels, None) == len(places)


def test_what_is_divided_keeps_double_precision() -> None:
    labels = torch.tensor([[IGNORE_INDEX, 1, 2]])
    targets = targets_of(labels, None, total=torch.tensor(3))
    assert targets.shares_N(torch.float64).tolist() == [1 / 3] * 2
    assert targets.shares_N(torch.bfloat16).dtype == torch.float32


def test_label_smoothing_is_transformers() -> None:
    labels = torch.randint(9, (2, 5))
    labels[:, 0], labels[1, 3] = IGNORE_INDEX, IGNORE_INDEX
    logits = torch.randn(2, 5, 9, dtype=torch.float64)
    targets = targets_of(labels, None, total=7.0)
    found = score_logits(logits.reshape(-1, 9)[targets.index_N], targets, Objective(label_smoothing=0.2), extras=False)
    smoother: Any = LabelSmoother(epsilon=0.2)
    expected = smoother({"logits": logits}, labels.clone(), shift_labels=True, num_items_in_batch=7)
    torch.testing.assert_close(found.loss, expected, rtol=1e-6, atol=0)  # transformers sums in float32


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "mse"}, "nll, dft, eaft"),
        ({"label_smoothing": 1.0}, r"\[0, 1\)"),
        ({"label_smoothing": -0.1}, r"\[0, 1\)"),
        ({"kind": "dft", "label_smoothing": 0.1}, "are mutually exclusive"),
        ({"kind": "eaft", "label_smoothing": 0.1}, "are mutually exclusive"),
    ],
)
def test_other_losses_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Objective(**changes)
