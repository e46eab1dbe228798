"""Products through oneDNN against float64, and where they are not taken."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from honed.ops import products
from honed.ops.products import FastLinear, add_mm, compute_dtype, fast_linears, linear, mm

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
SIZES = st.integers(1, 40)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any processor, and for products of any size; a few rows are added at a time."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(products, "PART_ELEMENTS", 64)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What oneDNN was asked for."""
    asked: list[Any] = []
    real = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *tensors: asked.append(tensors) or real(*tensors))
    return asked


def normal(*shape: int, transposed: bool = False) -> torch.Tensor:
    return torch.randn(*shape[::-1]).t() if transposed else torch.randn(*shape)


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= 1e-5 * expected.norm() + 1e-12


@settings(deadline=None, max_examples=60)
@given(m=SIZES, k=SIZES, n=SIZES, turned=st.tuples(st.booleans(), st.booleans()), seed=st.integers(0, 999))
def test_products_are_those_of_float64(m: int, k: int, n: int, turned: tuple[bool, bool], seed: int) -> None:
    torch.manual_seed(seed)
    a, b = normal(m, k, transposed=turned[0]), normal(k, n, transposed=turned[1])
    exact = a.double() @ b.double()
    near(mm(a, b), exact)
    near(linear(a, b.t()), exact)
    total = torch.randn(m, n)
    expected = total.double() + exact
    add_mm(total, a, b)
    near(total, expected)


@pytest.mark.parametrize("trained", ["all", "weight", "input"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(7,), (1, 7), (2, 3, 5)])
def test_a_layer_has_the_gradients_of_float64(leading: tuple[int, ...], bias: bool, trained: str) -> None:
    model = nn.Sequential(nn.Linear(12, 20, bias=bias)).requires_grad_(trained != "input")
    x = torch.randn(*leading, 12, requires_grad=trained != "weight")
    slope = torch.randn(*leading, 20)
    wanted = [tensor for tensor in (x, *model.parameters()) if tensor.requires_grad]
    with fast_linears(model) as count:
        found = torch.autograd.grad(model(x), wanted, slope)
    assert count == 1
    model, double = model.double(), x.detach().double().requires_grad_(x.requires_grad)
    wanted = [tensor for tensor in (double, *model.parameters()) if tensor.requires_grad]
    for gradient, exact in zip(found, torch.autograd.grad(model(double), wanted, slope.double()), strict=True):
        near(gradient, exact)


def test_a_frozen_layer_does_not_keep_its_input() -> None:
    model, x = nn.Linear(12, 20).requires_grad_(False), torch.randn(7, 12, requires_grad=True)
    kept: list[torch.Size] = []
    with (
        fast_linears(model),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t),
    ):
        model(x)
    assert kept == [model.weight.shape]


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_are_run_again_in_the_backward_pass(reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(12, 20), nn.SiLU(), nn.Linear(20, 12))
    x = torch.randn(7, 12, requires_grad=True)
    with fast_linears(model):
        expected = torch.autograd.grad(model(x).square().sum(), x)
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(x.grad, expected[0])


def test_layers_are_themselves_again_whatever_happens() -> None:
    class Own(nn.Linear):
        """Stands for layers with a product of their own."""

    model = nn.Sequential(nn.Linear(4, 4), Own(4, 4), nn.Sequential(nn.Linear(4, 4)))
    modules, names = list(model.modules()), list(model.state_dict())
    with pytest.raises(ZeroDivisionError), fast_linears(model) as count:
        assert count == 2
        assert list(model.modules()) == modules and list(model.state_dict()) == names
        assert [type(layer) for layer in (model[0], model[1], model[2][0])] == [FastLinear, Own, FastLinear]
        with fast_linears(model) as more:
            assert more == 0
        assert type(model[0]) is FastLinear
        raise ZeroDivisionError
    assert [type(layer) for layer in (model[0], model[1], model[2][0])] == [nn.Linear, Own, nn.Linear]


def test_copies_and_pickles_are_plain_layers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight  # tied, and with a hook
    heard: list[int] = []
    model[0].register_forward_hook(lambda *_: heard.append(1))
    x = torch.randn(2, 4)
    with fast_linears(model):
        copied = copy.deepcopy(model)
        hookless = copy.deepcopy(model[1])
        assert isinstance(model[0], nn.Linear) and type(model[0]) is FastLinear
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            data = pickle.dumps(hookless, protocol)
            assert b"honed" not in data
            assert torch.equal(pickle.loads(data)(x), hookless(x))
        torch.save(hookless, tmp_path / "layer.pt")
        assert type(torch.load(tmp_path / "layer.pt", weights_only=False)) is nn.Linear
    assert [type(layer) for layer in copied] == [nn.Linear, nn.Linear]
    assert copied[1].weight is copied[0].weight is not model[0].weight
    assert torch.equal(copied(x), model(x)) and len(heard) == 2
    copied[0].weight.data.zero_()
    assert model[0].weight.any()


class Sharded(torch.Tensor):
    """Stands for tensors with products of their own."""


OTHERS = {"float64": torch.randn(7, 12).double(), "bfloat16": torch.randn(7, 12).bfloat16()}


@pytest.mark.parametrize("x", [*OTHERS.values(), torch.randn(7, 12).as_subclass(Sharded)], ids=[*OTHERS, "subclass"])
def test_what_takes_torchs_own_way(x: torch.Tensor, calls: list[Any]) -> None:
    weight = torch.randn(20, 12).to(x.dtype)
    assert torch.equal(linear(x, weight), nn.functional.linear(x, weight))
    layer = nn.Linear(12, 20).to(x.dtype)
    with fast_linears(layer):
        layer(x)
    assert not calls


def test_autocast_and_small_products_take_torchs_own_way(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(12, 20), torch.randn(7, 12)
    with fast_linears(layer):
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert not calls
        layer(x)
        assert len(calls) == 1
        monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 7 * 12 * 20 + 1)
        layer(x)
    assert len(calls) == 1


def test_a_processor_that_mkl_suits_keeps_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    layer = nn.Linear(12, 20)
    with fast_linears(layer) as count:
        assert count == 0 and type(layer) is nn.Linear


@pytest.mark.parametrize(
    ("capability", "intel", "faster"), [("AVX512", False, True), ("AVX512", True, False), ("AVX2", False, False)]
)
def test_which_processors_are_meant(
    capability: str, intel: bool, faster: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.undo()  # the fixture above
    for name in products.CACHES:
        monkeypatch.setenv(name, "7")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "_made_by_intel", lambda: intel)
    assert products.onednn_is_faster.__wrapped__() is faster


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_dtype_of_a_product_is_torchs(dtype: torch.dtype, autocast: bool) -> None:
    x = torch.ones(2, 2, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert compute_dtype(x) == nn.functional.linear(x, x).dtype
        qkv = x[None, None]
        assert compute_dtype(x) == nn.functional.scaled_dot_product_attention(qkv, qkv, qkv).dtype
