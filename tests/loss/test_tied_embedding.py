"""An embedding that shares the head's weight: gradients are those of the plain model, and no second matrix is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from honed.loss.head import ScoringHead
from honed.loss.objective import targets_of
from honed.loss.tied_embedding import TiedEmbedding, one_gradient

V, D = 17, 5
EXACT = {"rtol": 1e-12, "atol": 1e-14}


class Model(nn.Module):
    """As small as a language model can be; `times` is how often it looks tokens up."""

    def __init__(self, *, padding_idx: int | None = None, times: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D, padding_idx=padding_idx, dtype=torch.float64)
        self.inner = nn.Linear(D, D, dtype=torch.float64)
        self.head = nn.Linear(D, V, bias=False, dtype=torch.float64)
        self.head.weight = self.embedding.weight
        self.times = times

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """Logits, or what the scoring head gives."""
        h_BLD = sum(self.embedding(ids_BL.roll(n, dims=1)) for n in range(self.times))
        logits: torch.Tensor = self.head(torch.tanh(self.inner(h_BLD)))
        return logits


def batch() -> tuple[torch.Tensor, Any]:
    ids_BL = torch.randint(6, (3, 8))  # so that tokens repeat
    labels_BL = torch.randint(V, (3, 8)).masked_fill(torch.rand(3, 8) < 0.3, -100)
    return ids_BL, targets_of(labels_BL, torch.rand(3, 8), total=3.0)


def plain_loss(model: Model, ids_BL: torch.Tensor, targets: Any) -> torch.Tensor:
    logits_ND = model(ids_BL).flatten(0, 1)[targets.index_N]
    losses_N = nn.functional.cross_entropy(logits_ND, targets.ids_N, reduction="none")
    return (losses_N * targets.weights_N.double()).sum() / 3


def scored_loss(model: Model, ids_BL: torch.Tensor, targets: Any) -> torch.Tensor:
    head = model.head
    assert isinstance(head, ScoringHead)
    with head.scoring(targets):
        output = model(ids_BL)
    return head.take(output).loss


def gradients(model: Model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"times": 2}], ids=str)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_are_those_of_the_plain_model(options: dict[str, Any], micro_batches: int) -> None:
    model, batches = Model(**options), [batch() for _ in range(micro_batches)]
    for one in batches:
        plain_loss(model, *one).backward()
    expected = gradients(model)
    model.head = ScoringHead(model.head)
    with one_gradient(model.embedding, model.head) as taken:
        assert taken
        for one in batches:
            scored_loss(model, *one).backward()
    torch.testing.assert_close(gradients(model), expected, **EXACT)


class FullMatrices(TorchDispatchMode):
    """Counts what makes a new matrix of V x D."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = isinstance(result, torch.Tensor) and result.shape == (V, D)
        if made and not any(isinstance(arg, torch.Tensor) and arg.data_ptr() == result.data_ptr() for arg in args):
            self.names.append(func.__name__)
        return result


@pytest.mark.parametrize("tied", [True, False])
def test_the_backward_pass_makes_no_matrix_of_its_own(tied: bool) -> None:
    model = Model()
    model.head = ScoringHead(model.head)
    with one_gradient(model.embedding, model.head if tied else None):
        loss = scored_loss(model, *batch())
        with FullMatrices() as made:
            loss.backward()
    assert made.names == [] if tied else "embedding_dense_backward.default" in made.names


def test_outside_scoring_and_afterwards_it_is_a_plain_embedding() -> None:
    model = Model()
    (ids_BL, targets), weight = batch(), model.embedding.weight
    expected = plain_loss(model, ids_BL, targets)
    model.head = ScoringHead(model.head)
    with one_gradient(model.embedding, model.head):
        assert type(model.embedding) is TiedEmbedding and isinstance(model.embedding, nn.Embedding)
        torch.testing.assert_close(plain_loss(model, ids_BL, targets), expected, **EXACT)
        assert model.head.tied_weight_VD is None
        scored_loss(model, ids_BL, targets)
        assert model.head.tied_weight_VD is None  # a graph is not kept any longer than it is needed
        assert [name for name, _ in model.named_modules()] == ["", "embedding", "inner", "head"]
    assert type(model.embedding) is nn.Embedding and "head" not in vars(model.embedding)
    assert model.embedding.weight is weight


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "untied"])
def test_a_frozen_or_untied_weight_is_left_alone(frozen: bool) -> None:
    model = Model()
    if frozen:
        model.embedding.requires_grad_(False)
    else:
        model.head.weight = nn.Parameter(torch.randn(V, D, dtype=torch.float64))
    ids_BL, targets = batch()
    plain_loss(model, ids_BL, targets).backward()
    expected = gradients(model)
    model.head = ScoringHead(model.head)
    with one_gradient(model.embedding, model.head):
        scored_loss(model, ids_BL, targets).backward()
    torch.testing.assert_close(gradients(model), expected, **EXACT)


@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.Embedding(V, D, dtype=torch.bfloat16),
        lambda: nn.Embedding(V, D, max_norm=1.0),
        lambda: nn.Embedding(V, D, sparse=True),
        lambda: nn.Embedding(V, D, scale_grad_by_freq=True),
        lambda: type("Scaled", (nn.Embedding,), {})(V, D),
    ],
    ids=["half", "max_norm", "sparse", "by_freq", "subclass"],
)
def test_other_embeddings_stay_as_they_are(other: Callable[[], nn.Embedding]) -> None:
    embedding = other()
    kind = type(embedding)
    with one_gradient(embedding, ScoringHead(nn.Linear(D, V))) as taken:
        assert not taken and type(embedding) is kind
