"""The scoring head, held against the linear layer that it stands in for, in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from honed.loss.head import LogitTransform, ScoringHead, score_logits
from honed.loss.objective import IGNORE_INDEX, Objective, Targets, targets_of, total_weight

B, L, D, V = 3, 7, 6, 31
EXACT = {"rtol": 1e-10, "atol": 1e-12}
OBJECTIVES = [Objective(), Objective(kind="dft"), Objective(kind="eaft"), Objective(label_smoothing=0.1)]


def draw(total: float = 5.0) -> tuple[torch.Tensor, Targets]:
    labels = torch.randint(V, (B, L))
    labels[torch.rand(B, L) < 0.4] = IGNORE_INDEX
    h = torch.randn(B, L, D, dtype=torch.float64, requires_grad=True)
    return h, targets_of(labels, torch.rand(B, L), total=total)


def through_a_model(logits: torch.Tensor, transform: LogitTransform) -> torch.Tensor:
    """What the models do behind their head."""
    logits = logits * transform.scale
    return logits if transform.softcap is None else torch.tanh(logits / transform.softcap) * transform.softcap


def token_losses(logits_NV: torch.Tensor, ids_N: torch.Tensor, objective: Objective) -> torch.Tensor:
    loss = F.cross_entropy(logits_NV, ids_N, reduction="none", label_smoothing=objective.label_smoothing)
    p_NV = logits_NV.softmax(-1).detach()
    if objective.kind == "eaft":
        return loss * torch.distributions.Categorical(probs=p_NV.topk(20).values).entropy() / 3
    return loss * p_NV.gather(1, ids_N[:, None]).squeeze(1) if objective.kind == "dft" else loss


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize(
    "transform",
    [LogitTransform(), LogitTransform(scale=0.3), LogitTransform(softcap=2.0), LogitTransform(scale=3.0, softcap=2.0)],
    ids=str,
)
def test_scores_and_gradients_are_those_of_the_logits(
    transform: LogitTransform, objective: Objective, bias: bool
) -> None:
    linear = torch.nn.Linear(D, V, bias=bias, dtype=torch.float64)
    head = ScoringHead(linear, transform)
    h, targets = draw()
    logits = through_a_model(linear(h), transform).reshape(-1, V)[targets.index_N]
    expected = (token_losses(logits, targets.ids_N, objective) * targets.weights_N.double()).sum() / 5
    inputs = [h, *linear.parameters()]
    with head.scoring(targets, objective=objective, extras=True):
        output = through_a_model(head(h), transform)
    scores = head.take(output)
    whole = score_logits(logits, targets, objective, extras=True)
    for found in (scores, whole):
        torch.testing.assert_close(found.loss, expected, **EXACT)
        torch.testing.assert_close(found.nll_N, F.cross_entropy(logits, targets.ids_N, reduction="none").detach())
        torch.testing.assert_close(found.entropy_N, torch.distributions.Categorical(logits=logits).entropy().detach())
        assert found.correct_N is not None and torch.equal(found.correct_N, logits.argmax(-1) == targets.ids_N)
    gradients = [torch.autograd.grad(s.loss, inputs, retain_graph=True) for s in (scores, whole)]
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, inputs, retain_graph=True), **EXACT)


def test_outside_it_is_the_linear_layer() -> None:
    linear = torch.nn.Linear(D, V, dtype=torch.float64)
    head = ScoringHead(linear)
    h, targets = draw()
    assert head.weight is linear.weight and head.bias is linear.bias
    assert set(head.state_dict()) == set(linear.state_dict())
    assert torch.equal(head(h), linear(h))
    with head.scoring(targets):
        assert head(h).shape == (1, 1, 1) and head(h).item() == 0
    assert torch.equal(head(h), linear(h))


def test_an_evaluation_between_forward_and_backward_does_no_harm() -> None:
    linear = torch.nn.Linear(D, V, dtype=torch.float64)
    head = ScoringHead(linear)
    h, targets = draw()

    def loss() -> torch.Tensor:
        with head.scoring(targets):
            return head.take(head(h)).loss

    training = loss()
    with torch.no_grad():
        evaluated = loss()
    assert not evaluated.requires_grad and evaluated == training
    torch.testing.assert_close(torch.autograd.grad(training, linear.weight), torch.autograd.grad(loss(), linear.weight))


class NoWaiting(TorchDispatchMode):
    """Fails whatever would wait for a device: reading a value, or making a tensor whose shape depends on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in self.WAITS, func
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_where_the_collator_has_counted() -> None:
    labels = torch.randint(V, (B, L))
    labels[0, 3:] = IGNORE_INDEX
    h, head = draw()[0], ScoringHead(torch.nn.Linear(D, V, dtype=torch.float64))
    count = int((labels[:, 1:] != IGNORE_INDEX).sum())
    with NoWaiting():
        targets = targets_of(labels, torch.rand(B, L), count=count, total=total_weight(labels, None))
        with head.scoring(targets, extras=True):
            head.take(head(h))
    with pytest.raises(AssertionError, match="nonzero"), NoWaiting():
        targets_of(labels, None)


def test_an_error_inside_leaves_the_head_as_it_was() -> None:
    head = ScoringHead(torch.nn.Linear(D, V))
    with pytest.raises(KeyError), head.scoring(draw()[1]):
        raise KeyError
    assert head(torch.randn(1, 1, D)).shape == (1, 1, V)


def test_a_forward_that_never_reached_the_head_is_noticed() -> None:
    head = ScoringHead(torch.nn.Linear(D, V))
    with pytest.raises(RuntimeError, match="LM head"):
        head.take(torch.zeros(1, 1, 1))


def test_scores_are_taken_once() -> None:
    head: Any = ScoringHead(torch.nn.Linear(D, V, dtype=torch.float64))
    h, targets = draw()
    with head.scoring(targets):
        output = head(h)
    head.take(output)
    with pytest.raises(RuntimeError, match="LM head"):
        head.take(output)


def test_half_precision_logits_are_scored_in_float32() -> None:
    _, targets = draw()
    logits = torch.randn(len(targets.ids_N), V).bfloat16()
    scores = score_logits(logits, targets, Objective(), extras=False)
    assert scores.loss.dtype == scores.nll_N.dtype == torch.float32 and scores.entropy_N is None
