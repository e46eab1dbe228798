"""Packed linear layers compute what plain ones do, and leave nothing behind."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn

from honed.ops.packed_linear import PackedLinear, can_pack, packed_linears

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


class Plain(nn.Linear):
    """A subclass stands for layers with kernels of their own."""


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 3), (200,)])
@torch.no_grad()
def test_the_product_is_the_same(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    if not can_pack(dtype):
        pytest.skip(f"oneDNN does not pack {dtype} on this processor")
    linear = nn.Linear(48, 20, bias=bias, dtype=dtype)
    x = torch.randn(*shape, 48, dtype=dtype)
    exact = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(PackedLinear(linear)(x).double(), exact, rtol=tolerance, atol=tolerance)


@needs_onednn
def test_layers_are_packed_within_the_block_only() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Sequential(Plain(8, 8), nn.Linear(8, 4)))
    before = list(model.modules())
    with pytest.raises(ZeroDivisionError), packed_linears(model) as count:
        assert count == 2
        assert [type(module) for module in model.modules() if isinstance(module, nn.Linear)] == [
            PackedLinear, Plain, PackedLinear,
        ]  # fmt: skip
        assert model[0].weight is before[1].weight  # type: ignore[attr-defined]
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))


@needs_onednn
@torch.no_grad()
def test_weights_are_read_anew_each_time() -> None:
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    x = torch.randn(3, 8)
    for _ in range(2):
        model[0].weight.mul_(2)
        with packed_linears(model):
            found = model(x)
        torch.testing.assert_close(found, model(x))


@needs_onednn
@torch.no_grad()
def test_bfloat16_is_computed_on_any_processor() -> None:
    model, x = nn.Sequential(nn.Linear(8, 4, dtype=torch.bfloat16)), torch.randn(3, 8, dtype=torch.bfloat16)
    plain = model(x)
    with packed_linears(model) as count:
        assert count == can_pack(torch.bfloat16)
        torch.testing.assert_close(model(x), plain, rtol=2e-2, atol=2e-2)


def test_other_formats_and_full_memory_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    with packed_linears(nn.Sequential(nn.Linear(4, 4, dtype=torch.float64))) as count:
        assert count == 0
    memory = namedtuple("memory", "available")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(available=64))
    with packed_linears(nn.Sequential(nn.Linear(4, 4))) as count:
        assert count == 0
