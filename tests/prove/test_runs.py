"""Statements about runs hold for the engines as they are, and fail for broken ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import broken
import pytest
import torch

from honed.prove import runs
from honed.prove.prove import find
from honed.prove.statement import FAILED, NOT_CHECKED, PASSED

WITHOUT_PROCESSES = [check for check in runs.STATEMENTS.values() if check is not runs.ranks]


def test_all_hold_without_an_adapter(subject_of: Callable[..., Any]) -> None:
    """With one: tests/cli/test_prove_verb.py."""
    subject = subject_of(lora=None)
    found = [find(check.__name__, check, subject) for check in WITHOUT_PROCESSES]
    assert [f.status for f in found] == [PASSED] * 4, found


def test_all_hold_with_weights_and_rates_of_their_own(
    subject_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"trainable": [r"layers\.1\.", "embed"], "learning_rates": {"mlp": 30}, "add_tokens": ["<fox>"]}
    subject = subject_of(lora=None, train=train)
    found = [find(check.__name__, check, subject) for check in WITHOUT_PROCESSES]
    assert [f.status for f in found] == [PASSED] * 4, found
    monkeypatch.setattr("honed.train.loop.loop.with_rates", lambda optimizer, *_: optimizer)
    assert find("it", runs.engines, subject).status == FAILED


@pytest.mark.parametrize(
    ("check", "kind"),
    [(runs.engines, broken.OneOff), (runs.resumed, broken.ForgetsMoments)],
    ids=["engines", "resumed"],
)
def test_a_wrong_trainer_fails(subject_of: Callable[..., Any], check: Any, kind: Any) -> None:
    found = find("it", check, replace(subject_of(), trainer=kind))
    assert found.status == FAILED and found.measured


def test_a_loss_that_is_no_number_fails_in_any_step(
    subject_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_loop = runs._by_loop

    def loses_one(*args: Any) -> runs.Run:
        run = by_loop(*args)
        run.log[1]["loss"] = math.nan
        return run

    monkeypatch.setattr(runs, "_by_loop", loses_one)
    assert find("it", runs.engines, subject_of(lora=None)).status == FAILED


def test_processes_that_count_their_own_tokens_fail(subject_of: Callable[..., Any]) -> None:
    found = find("ranks", runs.ranks, replace(subject_of(lora=None), trainer=broken.CountsItsOwn))
    assert found.status == FAILED and found.measured and found.measured > 1e-3


def test_a_loop_that_forgets_fails(subject_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from honed.train.loop import loop

    def forgets(run: Any, state: Any) -> None:
        run.step = state.position["step"]

    monkeypatch.setattr(loop, "restore", forgets)
    assert find("it", runs.resumed_by_loop, subject_of()).status == FAILED


def test_other_weights_after_loading_fail(subject_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    load = runs.load_model

    def loses_a_bit(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        model.get_input_embeddings().weight.data *= 1 + 1e-12
        return model

    monkeypatch.setattr(runs, "load_model", loses_a_bit)
    found = find("it", runs.reloaded, subject_of(lora=None))
    assert found.status == FAILED and found.measured


def test_where_weights_lie_in_memory_is_no_difference(
    subject_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's header of a length that 64 does not divide made MKL's products differ by a last bit in larger models."""
    load = runs.load_model
    begin_at: set[int] = set()

    def off_the_line(*given: Any, **options: Any) -> Any:
        model = load(*given, **options)
        for parameter in model.parameters():
            room = torch.empty(parameter.numel() + 8, dtype=parameter.dtype)
            start = next(n for n in range(8) if room[n:].data_ptr() % 64 == 56)
            room[start : start + parameter.numel()] = parameter.data.flatten()
            parameter.data = room[start : start + parameter.numel()].view_as(parameter)
        model.register_forward_pre_hook(
            lambda module, _: begin_at.update(parameter.data_ptr() % 64 for parameter in module.parameters())
        )
        return model

    monkeypatch.setattr(runs, "load_model", off_the_line)
    assert find("it", runs.reloaded, subject_of(lora=None)).measured == 0
    assert begin_at == {0}


def test_what_the_loop_does_not_have_is_not_checked(subject_of: Callable[..., Any]) -> None:
    found = find("it", runs.engines, subject_of(train={"optim": "adafactor"}))
    assert found.status == NOT_CHECKED and "adafactor" in found.detail
