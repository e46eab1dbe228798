"""Experts: sorted dispatch against a loop over tokens, the balance loss against its formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from honed.model.minimind.moe import MixtureOfExperts, Router, SwiGLU, balance_loss, dispatch, sequences_of

D = 6


def naive(x_ND: torch.Tensor, expert_NK: torch.Tensor, share_NK: torch.Tensor, experts: list[SwiGLU]) -> torch.Tensor:
    """One token and one expert at a time."""
    return torch.stack(
        [
            sum(share * experts[int(e)](x) for share, e in zip(shares, chosen, strict=True))
            for x, chosen, shares in zip(x_ND, expert_NK, share_NK, strict=True)
        ]
    )


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 17), experts=st.integers(1, 6), data=st.data())
def test_dispatch_is_the_loop_over_tokens_with_its_gradients(tokens: int, experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    used = data.draw(st.integers(top_k, experts))  # the others get no token
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layers = [SwiGLU(D, 5).double() for _ in range(experts)]
    parameters = [p for layer in layers for p in layer.parameters()]
    expert_NK = torch.stack([torch.randperm(used)[:top_k] for _ in range(tokens)])
    x_ND = torch.randn(tokens, D, dtype=torch.float64, requires_grad=True)
    share_NK = torch.rand(tokens, top_k, dtype=torch.float64, requires_grad=True)
    found, expected = dispatch(x_ND, expert_NK, share_NK, layers), naive(x_ND, expert_NK, share_NK, layers)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    inputs = [x_ND, share_NK, *parameters]
    ours = torch.autograd.grad(found, inputs, direction)  # raises where an unused expert is out of the graph
    theirs = torch.autograd.grad(expected, inputs, direction, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)
    with torch.no_grad():
        torch.testing.assert_close(dispatch(x_ND, expert_NK, share_NK, layers), expected)


@pytest.mark.parametrize("normalise", [True, False])
def test_router_takes_the_likeliest(normalise: bool) -> None:
    router = Router(D, 5, top_k=3, normalise=normalise)
    torch.nn.init.normal_(router.weight)
    x_ND = torch.randn(7, D)
    logits, expert, share = router(x_ND)
    probability = (x_ND @ router.weight.T).softmax(-1)
    ordered = probability.sort(descending=True)
    torch.testing.assert_close(expert, ordered.indices[:, :3])
    wanted = ordered.values[:, :3]
    torch.testing.assert_close(share, wanted / wanted.sum(-1, keepdim=True) if normalise else wanted)
    torch.testing.assert_close(logits.softmax(-1), probability)


def test_a_mixture_in_bfloat16_stays_bfloat16() -> None:
    layer = MixtureOfExperts(D, 8, experts=4, shared_experts=1, top_k=2, normalise=True)
    torch.nn.init.normal_(layer.gate.weight)
    y, _ = layer.bfloat16()(torch.randn(2, 5, D, dtype=torch.bfloat16))
    assert (y.dtype, y.shape) == (torch.bfloat16, (2, 5, D))


def balance_by_hand(logits: torch.Tensor, sequence: list[int], sequences: int, top_k: int) -> float:
    experts, total = logits.shape[1], 0.0
    for number in range(sequences):
        rows = [logits[i].softmax(0).tolist() for i, s in enumerate(sequence) if s == number]
        for e in range(experts):
            chose = sum(e in sorted(range(experts), key=lambda j: -row[j])[:top_k] for row in rows)
            f = experts / (top_k * len(rows)) * chose
            total += f * sum(row[e] for row in rows) / len(rows) / sequences
    return total


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balance_is_the_formula_sequence_by_sequence(top_k: int) -> None:
    logits = torch.randn(12, 4, dtype=torch.float64)
    sequence = [0, 0, 0, 1, 1, 1, 1, -1, 2, 2, -1, 1]
    found = balance_loss(logits, torch.tensor(sequence), sequences=3, top_k=top_k)
    assert float(found) == pytest.approx(balance_by_hand(logits, sequence, 3, top_k))


def test_balance_of_one_sequence_is_mixtrals_divided_by_top_k() -> None:
    """Switch Transformers count a token once for each expert that it chose, DeepSeek shares the token out."""
    logits = torch.randn(12, 4)
    mixtral = load_balancing_loss_func((logits,), num_experts=4, top_k=2)
    found = balance_loss(logits, torch.zeros(12, dtype=torch.long), sequences=1, top_k=2)
    torch.testing.assert_close(found, mixtral / 2)


def test_balance_is_one_when_experts_are_used_evenly_and_its_gradient_spreads_them() -> None:
    even = torch.eye(4).repeat(3, 1) * 30
    one = balance_loss(even, torch.zeros(12, dtype=torch.long), sequences=1, top_k=1)
    assert float(one) == pytest.approx(1.0)
    crowded = torch.tensor([[2.0, 0.0, 0.0, 0.0]] * 5, requires_grad=True)
    loss = balance_loss(crowded, torch.zeros(5, dtype=torch.long), sequences=1, top_k=1)
    loss.backward()
    assert float(loss.detach()) > 1
    assert bool((crowded.grad[:, 0] > 0).all()) and bool((crowded.grad[:, 1:] < 0).all())


def test_sequences_of_padded_flat_and_plain_batches() -> None:
    cpu = torch.device("cpu")
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    sequence, count = sequences_of(mask.shape, mask, None, cpu)
    assert (sequence.tolist(), count) == ([0, 0, -1, 1, 1, 1], 2)
    bounds = torch.tensor([0, 2, 5], dtype=torch.int32)
    sequence, count = sequences_of(torch.Size([1, 5]), None, bounds, cpu)
    assert (sequence.tolist(), count) == ([0, 0, 1, 1, 1], 2)
    sequence, count = sequences_of(torch.Size([2, 2]), None, None, cpu)
    assert (sequence.tolist(), count) == ([0, 0, 1, 1], 2)
