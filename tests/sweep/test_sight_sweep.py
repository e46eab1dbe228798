"""The sweep of models that see finds a right one right, and a wrong one wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="images need Pillow: pip install pillow")
sys.path.insert(0, str(Path(__file__).parent))
from checks import distance, oracle, step
from sight import Plain, look, make_sight, seen_rows
from sight_table import faults

from honed.train.forward.vision import VisionCollator


def test_a_model_that_sees_is_trained_as_the_plain_one_and_a_change_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    processor, model = make_sight("gemma3")
    rows = seen_rows("gemma3")
    loss, gradients = oracle(model, rows, Plain(processor))
    _, own_loss, own = step(model, rows, processor, **look({}))
    assert own_loss == pytest.approx(loss, rel=1e-3) and distance(own, gradients) < 1e-6
    monkeypatch.setattr(
        VisionCollator, "_cast", lambda self, value: value.to(self.dtype) * 0.9 if value.ndim == 4 else value
    )
    assert distance(step(model, rows, processor, **look({}))[2], gradients) > 1e-3


def test_faults_are_told_and_refusals_are_not() -> None:
    right = {"dtype": "float64", "batch": 1e-9, "one by one": 1e-9, "without images": 1e-9}
    text = {"flat": True, "batch": 1e-9, "packed": "refused: no", "padded": 1e-9}
    adapted = {"gradients": 1e-9, "export": 1e-6}
    found = {"made": True, "seeing": right, "adapted": adapted, "kept": 0.0, "text": text,
             "generation": {"note": "", "same": True}}  # fmt: skip
    assert not faults(found)
    assert faults({**found, "seeing": {**right, "batch": 1e-2}}) == ["seeing, batch: differs by 1.0e-02"]
    assert faults({**found, "adapted": {**adapted, "export": "error: x"}, "kept": 0.5}) == [
        "merged: error: x",
        "saved: differs by 5.0e-01",
    ]
