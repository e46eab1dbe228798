"""The benchmark against other trainers, as far as none is needed: how it looks at a step, and what is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in ("other_trainers", "training_step", "data_preparation", "growth"):
        sys.modules.pop(name, None)


def test_a_step_of_honed_has_the_gradients_of_the_model_s_own_loss(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    """So what it is held against is computed here, by no trainer at all."""
    from other_trainers import SAME, difference

    rows = [{"input_ids": list(range(3, 20)), "labels": [-100] * 8 + list(range(11, 20))},
            {"input_ids": list(range(30, 42)), "labels": [-100] * 3 + list(range(33, 42))}]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows * 2), encoding="utf-8")
    (tmp_path / "job.json").write_text(json.dumps({"steps": 2, "batch": 2, "longest": 17}), encoding="utf-8")
    model = tiny_model(tie_word_embeddings=False)
    for part in (model, tiny_tokenizer):
        part.save_pretrained(tmp_path / "model")
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "honed", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    assert told["seconds"] > 0
    assert told["peak_gb"] > 0
    assert told["versions"]["torch"] == version("torch")

    loss_of(model, rows).backward()
    expected = [[*p.shape, float(p.grad.norm())] for p in model.parameters()]
    assert difference(told["norms"], expected) < SAME / 100
    assert difference(expected, told["norms"]) < SAME / 100


def loss_of(model: Any, rows: list[dict[str, list[int]]]) -> Any:
    """The mean over trained tokens, each row by itself."""
    from torch import tensor
    from torch.nn.functional import cross_entropy

    count = sum(label >= 0 for row in rows for label in row["labels"][1:])
    logits = [model(tensor([row["input_ids"]])).logits[0, :-1] for row in rows]
    targets = [tensor(row["labels"][1:]) for row in rows]
    return sum(cross_entropy(*pair, reduction="sum") for pair in zip(logits, targets, strict=True)) / count


def test_parts_in_one_are_the_same_and_another_gradient_is_not() -> None:
    from other_trainers import SAME, difference

    ours = [[4, 2, 3.0], [4, 2, 4.0], [2, 1.0]]
    assert difference([[8, 2, 5.0], [2, 1.0]], ours) < 1e-12  # the first two as one tensor
    assert difference([[8, 2, 5.1], [2, 1.0]], ours) > SAME  # all in all
    assert difference([[8, 2, 24.99**0.5], [2, 1.01**0.5]], ours) > SAME  # one tensor, though all is as it was
    assert difference([[8, 2, 5.0]], ours) > SAME  # one has none


def test_a_trainer_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    from other_trainers import measure

    (tmp_path / "job.json").write_text('{"steps": 1}', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"(?s)litgpt failed.*No module named 'litgpt'"):
        measure("litgpt", sys.executable, tmp_path)
