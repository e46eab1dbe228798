"""Each statement about sums holds for the trainer as it is, and fails for one that is wrong in that way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import broken
import pytest

from honed.model.adapters import fused_lora
from honed.prove import sums
from honed.prove.engine import Step, apart
from honed.prove.prove import find
from honed.prove.statement import FAILED, NOT_CHECKED, PASSED
from honed.train.forward.seams import Seams

FAULTS = [
    (broken.MeanOfMeans, {"accumulated"}),
    (broken.Leaky, {"packed", "flat", "isolated"}),
    (broken.OneOff, {"packed", "padded"}),
    (broken.SharesWrongly, {"shared"}),
    (broken.RecomputesWrongly, {"checkpointed"}),
]


def statuses(subject: Any) -> dict[str, str]:
    return {check.__name__: find(name, check, subject).status for name, check in sums.STATEMENTS.items()}


def test_all_hold_without_an_adapter(subject_of: Callable[..., Any]) -> None:
    """With one: tests/cli/test_prove_verb.py."""
    found = statuses(subject_of(lora=None))
    assert found.pop("lora") == NOT_CHECKED
    assert set(found.values()) == {PASSED}


@pytest.mark.parametrize(("kind", "expected"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_trainer_fails(subject_of: Callable[..., Any], kind: Any, expected: set[str]) -> None:
    subject = replace(subject_of(), trainer=kind)
    checks = {name: check for name, check in sums.STATEMENTS.items() if check.__name__ in expected}
    found = [find(name, check, subject) for name, check in checks.items()]
    assert [f.status for f in found] == [FAILED] * len(expected)
    assert all(f.measured is not None and f.measured > 0 for f in found), "the check itself broke"


def test_logits_that_change_after_the_head_fail(subject_of: Callable[..., Any]) -> None:
    """Gemma 2 caps its logits, and honed's head does so, too; one that did not would fail."""
    subject = subject_of("gemma2")
    assert find("head", sums.head, subject).status == PASSED
    wrong = find("head", sums.head, replace(subject, seams=Seams(scoring=True)))
    assert wrong.status == FAILED and wrong.measured is not None


def test_a_wrong_lora_layer_fails(subject_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of()
    assert find("lora", sums.lora, subject).status == PASSED
    right = fused_lora.lora_linear

    def unscaled(*tensors: Any, scaling: float, **rest: Any) -> Any:
        return right(*tensors, scaling=1.0, **rest)

    monkeypatch.setattr(fused_lora, "lora_linear", unscaled)
    assert find("lora", sums.lora, subject).status == FAILED


def test_what_the_model_cannot_do_is_not_checked_and_says_why(subject_of: Callable[..., Any]) -> None:
    subject = replace(subject_of(), seams=Seams(notes=["it cannot"]))
    for check in (sums.packed, sums.flat, sums.shared, sums.head, sums.isolated):
        found = find("it", check, subject)
        assert found.status == NOT_CHECKED and found.detail == "it cannot"


def test_experts(subject_of: Callable[..., Any]) -> None:
    subject = subject_of("mixtral", model={"num_local_experts": 4, "num_experts_per_tok": 2}, lora=None)
    found = statuses(subject)
    assert found.pop("lora") == NOT_CHECKED
    assert set(found.values()) == {PASSED}


def test_the_distance_sees_nan_and_lost_weights() -> None:
    import torch

    step = Step(loss=1.0, gradient={"a": torch.ones(2)})
    assert apart(step, step) == 0
    assert apart(Step(loss=1.0, gradient={}), step) == float("inf")
    for wrong in (
        Step(loss=float("nan"), gradient=step.gradient),
        Step(loss=1.0, gradient={"a": torch.full((2,), float("nan"))}),
    ):
        assert apart(wrong, step) != apart(wrong, step)
