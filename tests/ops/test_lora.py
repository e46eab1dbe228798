"""The LoRA linear layer against its formula in float64, whose gradients are autograd's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.ops.lora import add_low_rank, lora_linear

Tensors = dict[str, torch.Tensor]
SIZES = st.integers(1, 9)


def draw(*leading: int, i: int, o: int, r: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (*leading, i), "dropped": (*leading, i), "bias": (o,), "a": (r, i), "b": (o, r)}
    made = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }
    return {**made, "weight": torch.randn(o, i, generator=generator, dtype=torch.float64).to(dtype)}


def formula(t: Tensors, *, scaling: float, bias: bool, drops: bool) -> torch.Tensor:
    base = F.linear(t["x"], t["weight"], t["bias"] if bias else None)
    return base + F.linear(F.linear(t["dropped"] if drops else t["x"], t["a"]), t["b"]) * scaling


def fused(t: Tensors, *, scaling: float, bias: bool, drops: bool) -> torch.Tensor:
    given_bias, dropped = t["bias"] if bias else None, t["dropped"] if drops else None
    return lora_linear(t["x"], t["weight"], given_bias, t["a"], t["b"], scaling=scaling, dropped_MI=dropped)


def update(t: Tensors, *, scaling: float, bias: bool, drops: bool) -> torch.Tensor:
    base = F.linear(t["x"], t["weight"], t["bias"] if bias else None)
    return add_low_rank(base, t["dropped"] if drops else t["x"], t["a"], t["b"], scaling=scaling)


def output_and_gradients(way: Any, t: Tensors, **options: Any) -> Tensors:
    trained = {name: tensor for name, tensor in t.items() if tensor.requires_grad}
    y = way(t, **options)
    slope = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype)
    found = torch.autograd.grad(y, list(trained.values()), slope, allow_unused=True)
    return {"y": y.detach(), **{n: g for n, g in zip(trained, found, strict=True) if g is not None}}


def furthest(found: Tensors, expected: Tensors) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[n].double() - e).norm() / e.norm().clamp_min(1e-300)) for n, e in expected.items())


@settings(deadline=None, max_examples=60)
@given(
    leading=st.lists(SIZES, min_size=1, max_size=3),
    i=SIZES, o=SIZES, r=SIZES, bias=st.booleans(), drops=st.booleans(), scaling=st.sampled_from([2.0, 0.3, -1.7]),
    way=st.sampled_from([fused, update]), dtype=st.sampled_from([torch.float64, torch.float32]),
)  # fmt: skip
def test_output_and_gradients_are_the_formulas(  # noqa: PLR0917 - hypothesis names them
    leading: list[int], i: int, o: int, r: int, bias: bool, drops: bool, scaling: float, way: Any, dtype: torch.dtype
) -> None:
    options = {"bias": bias, "drops": drops, "scaling": scaling}
    single = draw(*leading, i=i, o=o, r=r, dtype=dtype)
    exact = {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in single.items()}
    found = output_and_gradients(way, single, **options)
    # sums of few terms may cancel, so float32 is held to the size of its terms
    expected = output_and_gradients(formula, exact, **options)
    bound = 1e-10 if dtype == torch.float64 else 1e-5
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=bound, atol=bound * 30, msg=name)


@pytest.mark.parametrize("way", [fused, update])
def test_no_rows_at_all(way: Any) -> None:
    """As an expert has them to which no token was sent: its adapter's gradient is 0, not missing."""
    options = {"bias": True, "drops": False, "scaling": 2.0}
    found, expected = (output_and_gradients(each, draw(0, i=3, o=4, r=2), **options) for each in (way, formula))
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in expected.items()}
    assert not found["a"].any() and not found["b"].any()


@pytest.mark.parametrize("way", [fused, update])
def test_float32_at_full_size(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"bias": True, "drops": False, "scaling": 2.0}
    single = draw(300, i=576, o=192, r=16, dtype=torch.float32)
    exact = {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in single.items()}
    expected = output_and_gradients(formula, exact, **options)
    found = output_and_gradients(way, single, **options)
    assert furthest(found, expected) < 1e-5
    again = output_and_gradients(way, single, **options)
    assert all(torch.equal(found[name], again[name]) for name in found), "the same work gave other bits"
    monkeypatch.setattr("honed.ops.products.onednn_is_faster", lambda: False)
    assert furthest(output_and_gradients(way, single, **options), expected) < 1e-5


@pytest.mark.parametrize("frozen", ["x", "a", "b", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    t = draw(5, i=6, o=4, r=2)
    t[frozen].requires_grad_(False)
    t["weight"].requires_grad_()  # the base is frozen for this layer whatever the flag says
    options = {"bias": True, "drops": False, "scaling": 2.0}
    expected = output_and_gradients(formula, t, **options)
    found = output_and_gradients(fused, t, **options)
    del expected["weight"]
    assert frozen not in found and furthest(found, expected) < 1e-10


@pytest.mark.parametrize("way", [fused, update])
def test_inputs_stay_and_only_the_narrow_product_is_kept(way: Any) -> None:
    t = draw(50, i=24, o=40, r=3, dtype=torch.float32)
    before = {name: tensor.detach().clone() for name, tensor in t.items()}
    theirs = {tensor.data_ptr() for tensor in t.values()}
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in theirs:
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = way(t, bias=True, drops=False, scaling=2.0)
    y.sum().backward()
    assert kept == [(50, 3)]
    assert all(torch.equal(t[name], before[name]) for name in t)


@pytest.mark.parametrize("way", [fused, update])
@pytest.mark.parametrize("drops", [False, True])
def test_autocast(way: Any, drops: bool) -> None:
    """Products in bfloat16; gradients in the format of what they belong to."""
    t = draw(7, 5, i=24, o=40, r=3, dtype=torch.float32)
    options = {"bias": True, "drops": drops, "scaling": 0.5}
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = (output_and_gradients(each, t, **options) for each in (way, formula))
    exact = output_and_gradients(formula, t, **options)
    assert {n: v.dtype for n, v in found.items()} == {n: v.dtype for n, v in theirs.items()}
    assert furthest(found, {n: v.double() for n, v in exact.items()}) < 2e-2


@pytest.mark.parametrize("drops", [False, True])
def test_a_base_in_half_precision_with_an_adapter_in_full(drops: bool) -> None:
    t = draw(30, i=24, o=40, r=3, dtype=torch.float32)
    base = torch.randn(30, 40, dtype=torch.bfloat16, requires_grad=True)
    x = t["x"].detach().bfloat16().requires_grad_()
    expected = (base.float() + F.linear(F.linear(x.float(), t["a"]), t["b"]) * 0.5).bfloat16()
    found = add_low_rank(base, x, t["a"], t["b"], scaling=0.5)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)  # one step of bfloat16, where the sums round apart
    parts = [base, x, t["a"], t["b"]]
    slope = torch.randn_like(expected)
    for ours, theirs in zip(*(torch.autograd.grad(y, parts, slope) for y in (found, expected)), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("way", [fused, update])
def test_a_model_may_add_to_the_output_in_place(way: Any) -> None:
    """As Falcon and Gemma 3n do."""
    t, options = draw(2, 3, i=5, o=4, r=2), {"bias": True, "drops": False, "scaling": 2.0}

    def added(of: Any, t: Tensors, **options: Any) -> torch.Tensor:
        y = of(t, **options)
        y += t["x"].sum()
        return y

    expected = output_and_gradients(lambda t, **o: added(formula, t, **o), t, **options)
    assert furthest(output_and_gradients(lambda t, **o: added(way, t, **o), t, **options), expected) < 1e-10
