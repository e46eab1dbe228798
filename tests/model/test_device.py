"""Devices and number formats are chosen by asking and measuring."""

from __future__ import annotations

import pytest
import torch

from honed.model import device


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_pick_device(cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device.pick_device().type == expected


@pytest.mark.parametrize(
    ("kind", "bf16_seconds", "expected"),
    [
        ("cpu", 0.1, torch.bfloat16),
        ("cpu", 0.5, torch.float32),  # what is not a product would be slower
        ("cpu", 4.0, torch.float32),
        ("mps", 0.5, torch.float32),
    ],
)
def test_pick_dtype_is_measured(
    kind: str, bf16_seconds: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {torch.bfloat16: bf16_seconds, torch.float32: 1.0}
    monkeypatch.setattr(device, "matmul_seconds", lambda dtype: seconds[dtype])
    assert device.pick_dtype(torch.device(kind)) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_pick_dtype_asks_cuda(supported: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert device.pick_dtype(torch.device("cuda")) == expected


def test_matmul_seconds_grow_with_the_work() -> None:
    assert 0 < device.matmul_seconds(torch.float32, size=16) < device.matmul_seconds(torch.float32, size=768)


def test_measuring_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    device.matmul_seconds(torch.float32, size=8)
    device.matmul_speed(torch.device("cpu"), torch.float32, seconds=0.001)
    assert torch.equal(torch.get_rng_state(), before)
