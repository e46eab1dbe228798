"""Activations on the host: moved there and back, without changing a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from honed.train.forward import offload
from honed.train.forward.offload import offloaded

CPU = torch.device("cpu")


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The copies that were made."""
    made: list[torch.Tensor] = []
    plain = offload._Moved

    def counted(copy: torch.Tensor, device: torch.device) -> Any:
        made.append(copy)
        return plain(copy, device)

    monkeypatch.setattr(offload, "_Moved", counted)
    return made


def gradients(model: Any, *, smallest: int | None) -> dict[str, torch.Tensor]:
    ids = torch.arange(3, 40)[None]
    model.zero_grad()
    if smallest is None:
        model(input_ids=ids, labels=ids).loss.backward()
    else:
        with offloaded(CPU, smallest=smallest):
            model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_do_not_change_by_a_bit(
    checkpointing: bool, tiny_model: Callable[..., Any], moved: list[torch.Tensor]
) -> None:
    model = tiny_model()
    expected = gradients(model, smallest=None)
    if checkpointing:
        name = "activation_checkpointing_enable"
        getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()
    found = gradients(model, smallest=0)
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)
    layers = len(model.model.layers)
    assert len(moved) >= layers, "nothing was moved"


def test_weights_and_small_tensors_stay(tiny_model: Callable[..., Any], moved: list[torch.Tensor]) -> None:
    model = tiny_model()
    gradients(model, smallest=0)
    weights = {p.data_ptr() for p in model.parameters()}
    assert moved and not {copy.data_ptr() for copy in moved} & weights
    assert not any(copy.shape in {p.shape, p.t().shape} for copy in moved for p in model.lm_head.parameters())
    moved.clear()
    gradients(model, smallest=10**9)
    assert not moved


def test_a_trainer_on_a_cpu_says_that_it_has_no_effect(
    make: Callable[..., Any], chat_rows: list[dict[str, Any]], moved: list[torch.Tensor]
) -> None:
    trainer = make(chat_rows, activation_offloading=True, max_steps=1)
    trainer.train()
    assert not moved and any("activation_offloading has no effect on a CPU" in note for note in trainer.notes)


def test_a_trainer_elsewhere_does_it(
    make: Callable[..., Any],
    chat_rows: list[dict[str, Any]],
    moved: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device is a double: activations are on the CPU, and are moved as if it were a GPU."""
    from honed.train.trainer import stepping as module

    calls: list[torch.device] = []

    def as_if(device: torch.device) -> Any:
        calls.append(device)
        return offloaded(CPU, smallest=0)

    monkeypatch.setattr(module, "offloaded", as_if)
    monkeypatch.setattr(module, "on_host", lambda device: False)
    plain = make(chat_rows, max_steps=2)
    plain.train()
    trainer = make(chat_rows, activation_offloading=True, max_steps=2)
    trainer.train()
    assert len(calls) == 2 and moved
    pairs = zip(plain.model.parameters(), trainer.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
