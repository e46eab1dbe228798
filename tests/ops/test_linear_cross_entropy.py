"""Loss and gradients held against torch's cross entropy on whole logits, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from honed.ops import linear_cross_entropy as module
from honed.ops.linear_cross_entropy import TokenScores, linear_cross_entropy
from honed.ops.token_factor import KINDS

N, D, V = 23, 6, 31
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def draw(*, bias: bool = False, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    return {
        "h": torch.randn(N, D, dtype=dtype, requires_grad=True),
        "weight": torch.randn(V, D, dtype=dtype, requires_grad=True),
        "bias": torch.randn(V, dtype=dtype, requires_grad=True) if bias else None,
        "targets": torch.randint(V, (N,)),
        "weights": torch.rand(N, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32)),
    }


def parameters(drawn: dict[str, Any]) -> list[torch.Tensor]:
    return [drawn[name] for name in ("h", "weight", "bias") if drawn[name] is not None]


def ours(drawn: dict[str, Any], **options: Any) -> TokenScores:
    tensors = (drawn["h"], drawn["weight"], drawn["targets"], drawn["weights"])
    return linear_cross_entropy(*tensors, bias_V=drawn["bias"], **options)


def logits_of(drawn: dict[str, Any], softcap: float | None) -> torch.Tensor:
    logits = F.linear(drawn["h"], drawn["weight"], drawn["bias"])
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def factor(kind: str, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """By the formulas of the papers; EAFT's entropy is that of the 20 likeliest tokens, in units of 3 nats."""
    p = logits.detach().softmax(-1)
    if kind == "dft":
        return p[torch.arange(len(p)), targets]
    if kind == "eaft":
        likeliest = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).sort(descending=True).values
        return torch.distributions.Categorical(logits=likeliest[:, :20]).entropy() / 3
    return torch.ones_like(p[:, 0])


def reference(
    drawn: dict[str, Any], *, label_smoothing: float = 0.0, kind: str = "nll", softcap: float | None = None
) -> torch.Tensor:
    logits = logits_of(drawn, softcap)
    loss = F.cross_entropy(logits, drawn["targets"], reduction="none", label_smoothing=label_smoothing)
    return (loss * drawn["weights"] * factor(kind, logits, drawn["targets"])).sum()


@pytest.mark.parametrize("rows", [1, 5, N, 100], ids=lambda rows: f"tiles-of-{rows}")
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("softcap", [None, 1.5], ids=["", "softcap"])
@pytest.mark.parametrize(("kind", "smoothing"), [*((kind, 0.0) for kind in KINDS), ("nll", 0.1)])
def test_loss_and_gradients(kind: str, smoothing: float, softcap: float | None, bias: bool, rows: int) -> None:
    drawn = draw(bias=bias)
    options = {"label_smoothing": smoothing, "kind": kind, "softcap": softcap}
    scores = ours(drawn, rows=rows, **options)
    expected = reference(drawn, **options)
    torch.testing.assert_close(scores.loss, expected, **EXACT)
    found = torch.autograd.grad(scores.loss, parameters(drawn))
    torch.testing.assert_close(found, torch.autograd.grad(expected, parameters(drawn)), **EXACT)


@pytest.mark.parametrize("gradient", [True, False], ids=["training", "no_grad"])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.2}, {"softcap": 1.5}, {"kind": "dft"}, {"kind": "eaft"}], ids=str
)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_scores_of_tokens(bias: bool, options: dict[str, Any], gradient: bool) -> None:
    """The entropy from the gradient, and the one from the logits; the nll has neither smoothing nor weight."""
    drawn = draw(bias=bias)
    logits = logits_of(drawn, options.get("softcap")).detach()
    with torch.set_grad_enabled(gradient):
        scores = ours(drawn, extras=True, rows=5, **options)
    torch.testing.assert_close(scores.nll_N, F.cross_entropy(logits, drawn["targets"], reduction="none"), **EXACT)
    torch.testing.assert_close(scores.entropy_N, torch.distributions.Categorical(logits=logits).entropy(), **EXACT)
    assert scores.correct_N is not None and torch.equal(scores.correct_N, logits.argmax(-1) == drawn["targets"])
    assert scores.loss.requires_grad is gradient
    assert not any(part.requires_grad for part in (scores.nll_N, scores.entropy_N, scores.correct_N))  # type: ignore


def test_extras_are_left_out_unless_asked_for() -> None:
    scores = ours(draw())
    assert scores.entropy_N is None and scores.correct_N is None


def test_extreme_logits_stay_finite() -> None:
    """A probability that float32 cannot hold has a negative log-likelihood that it can."""
    drawn = draw(dtype=torch.float32)
    with torch.no_grad():
        drawn["h"].mul_(200)
    scores = ours(drawn, extras=True)
    logits = F.linear(drawn["h"].double(), drawn["weight"].double())
    nll = F.cross_entropy(logits, drawn["targets"], reduction="none")
    assert nll.max() > 700  # exp(-700) is 0 in float32
    torch.testing.assert_close(scores.nll_N.double(), nll.detach(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("frozen", ["h", "weight", "bias"])
def test_nothing_is_computed_for_what_needs_no_gradient(frozen: str) -> None:
    drawn = draw(bias=True)
    drawn[frozen].requires_grad_(False)
    trained = [tensor for tensor in parameters(drawn) if tensor.requires_grad]
    products = Products()
    with products:
        scores = ours(drawn, extras=True, rows=5)
    tiles = 5
    assert products.count == tiles * (1 + len(trained))
    found = torch.autograd.grad(scores.loss, trained)
    torch.testing.assert_close(found, torch.autograd.grad(reference(drawn), trained), **EXACT)
    torch.testing.assert_close(
        scores.entropy_N, torch.distributions.Categorical(logits=logits_of(drawn, None)).entropy().detach(), **EXACT
    )


class Products(TorchDispatchMode):
    """Counts matrix products, and remembers the largest tensor that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_}
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.largest = max(self.largest, made.numel())
        return made


@pytest.mark.parametrize("gradient", [True, False], ids=["training", "no_grad"])
def test_three_products_a_tile_and_never_the_whole_logits(gradient: bool) -> None:
    drawn = draw()
    products = Products()
    with products, torch.set_grad_enabled(gradient):
        scores = ours(drawn, extras=True, rows=4)
        if gradient:
            scores.loss.backward()
    assert products.count == 6 * (3 if gradient else 1)
    assert products.largest <= max(4 * V, V * D, N * D) < N * V


def test_the_gradient_is_multiplied_by_what_comes_from_above() -> None:
    drawn = draw(bias=True)
    found = torch.autograd.grad(ours(drawn).loss * 3.5, parameters(drawn))
    torch.testing.assert_close(found, torch.autograd.grad(reference(drawn) * 3.5, parameters(drawn)), **EXACT)


@pytest.mark.parametrize("above", [1.0, 3.5])
def test_backward_runs_again_with_the_graph_retained(above: float) -> None:
    drawn = draw(bias=True)
    loss = ours(drawn).loss * above
    loss.backward(retain_graph=True)
    first = [tensor.grad.clone() for tensor in parameters(drawn)]  # type: ignore[union-attr]
    loss.backward()
    torch.testing.assert_close([tensor.grad for tensor in parameters(drawn)], [2 * grad for grad in first])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_autograd_keeps_the_weights_gradient_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """And adds a tied embedding's to it in place, which it does only to a tensor that is no view."""
    made: list[int] = []
    result: Callable[[Any], Any] = module._Sum.result

    def noted(self: Any) -> Any:
        gradient = result(self)
        assert gradient._base is None
        made.append(gradient.data_ptr())
        return gradient

    monkeypatch.setattr(module._Sum, "result", noted)
    for tied in (False, True):
        drawn = draw()
        if tied:
            drawn["h"] = F.embedding(torch.randint(V, (N,)), drawn["weight"])
        ours(drawn, rows=5).loss.backward()
        assert made.pop() == drawn["weight"].grad.data_ptr()


def test_tied_weights_get_both_gradients() -> None:
    drawn = draw()
    ids = torch.randint(V, (N,))

    def gradient(loss_of: Callable[[dict[str, Any]], torch.Tensor]) -> torch.Tensor:
        tied = {**drawn, "h": F.embedding(ids, drawn["weight"]).tanh()}
        return torch.autograd.grad(loss_of(tied), drawn["weight"])[0]

    torch.testing.assert_close(gradient(lambda tied: ours(tied, rows=5).loss), gradient(reference), **EXACT)


@pytest.mark.parametrize("extras", [False, True])
def test_no_token_gives_no_loss_and_a_zero_gradient(extras: bool) -> None:
    drawn = draw(bias=True)
    for name in ("h", "targets", "weights"):
        drawn[name] = drawn[name][:0]
    scores = ours(drawn, extras=extras)
    h, weight, bias = torch.autograd.grad(scores.loss, [drawn["h"], drawn["weight"], drawn["bias"]])
    assert scores.loss == 0 and scores.nll_N.shape == (0,) and h.shape == (0, D)
    assert weight.shape == (V, D) and bias.shape == (V,) and not weight.any() and not bias.any()


@pytest.mark.parametrize("rows", [5, 100])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"softcap": 3.0}, {"kind": "dft"}, {"kind": "eaft"}], ids=str
)
@pytest.mark.parametrize("half_dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_good_as_whole_logits(
    half_dtype: torch.dtype, options: dict[str, Any], autocast: bool, rows: int
) -> None:
    """Whole or under autocast: the error against float64 is about that of plain half-precision logits."""
    exact = draw(bias=True)
    dtype = torch.float32 if autocast else half_dtype
    half = {name: exact[name].detach().to(dtype).requires_grad_() for name in ("h", "weight", "bias")}
    half |= {"targets": exact["targets"], "weights": exact["weights"].float()}
    loss = reference(exact, **options)
    expected = [loss.detach(), *torch.autograd.grad(loss, parameters(exact))]
    errors = []
    for loss_of in (lambda: reference(half, **options), lambda: ours(half, rows=rows, extras=True, **options).loss):
        with torch.autocast("cpu", dtype=half_dtype, enabled=autocast):
            loss = loss_of()
        found = [loss.detach(), *torch.autograd.grad(loss, parameters(half))]
        assert [part.dtype for part in found[1:]] == [dtype] * 3 and loss.dtype == torch.float32
        pairs = zip(found, expected, strict=True)
        errors.append([float((a.double() - b).norm() / b.norm()) for a, b in pairs])
    assert all(mine < 1.2 * plain + 1e-3 for plain, mine in zip(*errors, strict=True)), errors


def test_float16_keeps_small_gradients_until_they_are_scaled() -> None:
    """The gradient scaler's factor comes last: entry by entry no more may be lost than where it comes first."""
    tokens, vocabulary, scale = 64, 4000, 2.0**16
    h, weight = torch.randn(tokens, 8), torch.randn(vocabulary, 8) / 3
    targets, weights = torch.randint(vocabulary, (tokens,)), torch.full((tokens,), 1 / 131_072)
    logits = F.linear(h.double(), weight.double().requires_grad_())
    expected = torch.autograd.grad((F.cross_entropy(logits, targets, reduction="none") * weights).sum(), logits)[0]
    expected = expected.t() @ h.double()
    held = weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        scores = linear_cross_entropy(h, held, targets, weights, rows=20)
    (found,) = torch.autograd.grad(scores.loss * scale, held)
    wrong = (found.double() / scale - expected).abs() > 0.02 * expected.abs().clamp(min=expected.abs().median())
    assert wrong.double().mean() < 0.001


def test_float16_has_room_for_vocabularies_greater_than_its_numbers() -> None:
    """Flat logits: the sum of exponentials is the vocabulary, beyond float16's 65,504."""
    h = torch.zeros(2, 4, requires_grad=True)
    weight = torch.randn(151_936, 4, requires_grad=True)
    targets = torch.tensor([3, 5])
    with torch.autocast("cpu", dtype=torch.float16):
        scores = linear_cross_entropy(h, weight, targets, torch.ones(2), extras=True)
    expected = weight.detach().mean(0) - weight.detach()[targets]
    torch.testing.assert_close(torch.autograd.grad(scores.loss, h)[0], expected, rtol=0.01, atol=0.01)
    torch.testing.assert_close(scores.entropy_N, torch.full((2,), 151_936.0).log(), rtol=1e-3, atol=0.0)


def test_sums_over_tiles_do_not_lose_small_tiles_in_half_precision() -> None:
    """Many tiles of equal gradients: summed in bfloat16, the later ones would vanish."""
    h = torch.ones(2000, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(2000, dtype=torch.int64)
    linear_cross_entropy(h, weight, targets, torch.ones(2000), rows=1).loss.backward()
    assert weight.grad is not None and weight.grad.flatten().tolist() == [-1000.0, 1000.0]


def test_autocast_leaves_float64_alone() -> None:
    h, weight = torch.randn(6, 8, dtype=torch.float64), torch.randn(30, 8, dtype=torch.float64)
    targets, weights = torch.randint(30, (6,)), torch.ones(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cross_entropy(h, weight, targets, weights).nll_N
    torch.testing.assert_close(found, F.cross_entropy(h @ weight.t(), targets, reduction="none"))
