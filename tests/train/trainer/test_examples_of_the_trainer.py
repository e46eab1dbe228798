"""The examples of SFTTrainer, on a tiny model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def example(name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("name", ["quick_start", "own_model", "lora", "noise_and_schedule"])
def test_an_example(name: str, folder: Callable[..., str], quick: dict[str, Any], chat_rows: list[Any]) -> None:
    trainer = example(name)(folder(), chat_rows, **quick, max_steps=2)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)


def test_both_ways_to_train_on_answers_train_the_same(folder: Callable[..., str], quick: dict[str, Any]) -> None:
    first, second = (example("formatting")(folder(), by_text=way, **quick, max_steps=1) for way in (False, True))
    [a], [b] = ([line["loss"] for line in t.state.log_history if "loss" in line] for t in (first, second))
    assert a == pytest.approx(b, rel=1e-5)
