"""The kernel, run by Triton's interpreter on a CPU and held against torch in float64.

Triton looks for TRITON_INTERPRET when it is imported, so test_cross_entropy_triton.py runs this in another process.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from honed.ops import cross_entropy_triton
from honed.ops.linear_cross_entropy import linear_cross_entropy

# Vocabularies: less than a block of the kernel, one block, more than two and no multiple.
VOCABULARIES = (31, 64, 150)
N, D = 7, 6
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # the interpreter cuts bits off, a GPU rounds
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"label_smoothing": 0.2},
    {"softcap": 1.5},
    {"softcap": 1.5, "label_smoothing": 0.2},
)
WEIGHED: tuple[dict[str, Any], ...] = ({"kind": "dft"}, {"kind": "eaft"}, {"kind": "eaft", "softcap": 1.5})


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy_triton, "BLOCK", 64)


def capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@pytest.mark.parametrize(
    ("dtype", "vocabulary"), [*((torch.float32, v) for v in VOCABULARIES), (torch.bfloat16, 150), (torch.float16, 150)]
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scores_and_gradient(dtype: torch.dtype, options: dict[str, Any], vocabulary: int) -> None:
    """Of the very logits that the kernel gets, and rows that are part of a wider buffer."""
    buffer = (3 * torch.randn(N, vocabulary + 5)).to(dtype)
    logits, beside = buffer[:, :vocabulary], buffer[:, vocabulary:].clone()
    targets = torch.randint(vocabulary, (N,))
    exact = logits.double().requires_grad_()
    x = capped(exact, options.get("softcap"))
    expected = F.cross_entropy(x, targets, reduction="none", label_smoothing=options.get("label_smoothing", 0.0))
    (gradient,) = torch.autograd.grad(expected.sum(), exact)

    loss, nll, entropy, correct = cross_entropy_triton.score(logits, targets, entropy=True, scale=8.0, **options)

    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(loss, expected.detach(), **close)
    torch.testing.assert_close(nll, F.cross_entropy(x, targets, reduction="none").detach(), **close)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=x).entropy().detach(), **close)
    assert torch.equal(correct, x.amax(-1) == x.gather(1, targets[:, None])[:, 0])
    torch.testing.assert_close(logits.double() / 8, gradient, rtol=DTYPES[dtype], atol=5e-7)
    assert torch.equal(buffer[:, vocabulary:], beside)


def test_without_a_scale_the_logits_stay() -> None:
    logits = torch.randn(N, 150)
    before = logits.clone()
    assert cross_entropy_triton.score(logits, torch.zeros(N, dtype=torch.int64))[2] is None
    assert torch.equal(logits, before)


def test_extreme_logits_stay_finite() -> None:
    """The greatest logit comes in the last block, after one of nothing but -inf."""
    logits = torch.full((2, 150), float("-inf"))
    logits[:, 140:] = torch.linspace(-800, 800, 10)
    expected = F.cross_entropy(logits.double(), torch.tensor([149, 140]), reduction="none")
    loss, _, entropy, correct = cross_entropy_triton.score(
        logits, torch.tensor([149, 140]), entropy=True, scale=1.0, softcap=None
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    assert correct.tolist() == [True, False] and torch.isfinite(logits).all() and entropy is not None
    assert entropy.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        *((torch.float32, options) for options in (*OPTIONS, *WEIGHED)),
        *((dtype, options) for dtype in (torch.bfloat16, torch.float16) for options in (OPTIONS[-1], WEIGHED[-1])),
    ],
)
def test_the_head_by_kernel_is_the_head_without(
    dtype: torch.dtype, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, gradients, entropy and correctness of the whole head, in several tiles."""
    h, weight, bias = torch.randn(N, D), torch.randn(150, D), torch.randn(150)
    targets, weights = torch.randint(150, (N,)), torch.rand(N)
    found = []
    for interpret in ("1", "0"):
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
        held = [tensor.to(dtype).requires_grad_() for tensor in (h, weight, bias)]
        scores = linear_cross_entropy(
            held[0], held[1], targets, weights, bias_V=held[2], extras=True, rows=3, **options
        )
        gradients = torch.autograd.grad(scores.loss, held)
        found.append((scores.loss.detach(), scores.nll_N, scores.entropy_N, scores.correct_N, *gradients))
    tolerance = 2 * DTYPES[dtype]
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)


def test_it_is_used_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU only interpreted, never in float64, and not for rows whose logits do not lie side by side."""
    logits = torch.randn(3, 8)
    assert cross_entropy_triton.can_score(logits)
    assert not cross_entropy_triton.can_score(logits.double())
    assert not cross_entropy_triton.can_score(logits.t())
    assert not cross_entropy_triton.can_score(logits[:0])
    with FakeTensorMode() as mode:
        assert not cross_entropy_triton.can_score(mode.from_tensor(logits))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not cross_entropy_triton.can_score(logits)


@pytest.mark.parametrize("wrong", ["raises", "differs"])
def test_a_kernel_that_does_not_work_is_told_and_left_out(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(logits: torch.Tensor, targets: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
        if wrong == "raises":
            raise RuntimeError("Failed to find C compiler")
        return (torch.zeros(len(logits)),)

    cross_entropy_triton._works.cache_clear()
    monkeypatch.setattr(cross_entropy_triton, "score", broken)
    with pytest.warns(RuntimeWarning, match="PyTorch does without it"):
        assert not cross_entropy_triton.can_score(torch.randn(3, 8))
    assert not cross_entropy_triton.can_score(torch.randn(3, 8))  # told once
    cross_entropy_triton._works.cache_clear()
