"""The demo's recipe on the real model, cut to three steps and short answers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from honed.model.smollm2 import smollm2

SECONDS = 60


@pytest.fixture
def real_model_at_hand() -> None:
    """Skips where the default model would have to be downloaded."""
    if os.environ.get(smollm2.SOURCE_VARIABLE) or smollm2.installed_file():
        return
    if smollm2.converted_fault(smollm2.converted_path()) is not None:
        pytest.skip(f"not in the cache ({smollm2.converted_path()}); set {smollm2.SOURCE_VARIABLE} to its wheel")


@pytest.mark.real_model
@pytest.mark.usefixtures("real_model_at_hand")
def test_three_steps_of_the_demo(honed: Callable[..., Any], tmp_path: Path) -> None:
    start = time.process_time()  # of one thread, see conftest.py: what else runs on the machine does not count
    shown = honed("demo", f"output={tmp_path / 'run'}", "max_steps=3", "samples.max_new_tokens=8")
    assert shown.status == 0, shown.err
    assert time.process_time() - start < SECONDS
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3
    assert all(1 < loss < 5 for loss in losses)  # a random model would start at ln(49152) = 10.8
    samples = json.loads((tmp_path / "run" / "samples.json").read_text())
    assert samples["before"]["of"] == samples["after"]["of"] == 16
