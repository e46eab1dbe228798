"""A step that was not taken is come to again by the command that the run prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from honed.cli.main import main
from honed.train.run.replay import replay_command


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """Undoes `quiet_libraries`, which is meant to last as long as the process."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "not_finite.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("saves", [True, False], ids=["from a checkpoint", "from the beginning"])
def test_the_printed_command_comes_to_the_same_step(
    saves: bool, model_folder: Path, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate far too high: the first step ruins the weights, and the later ones are not taken."""
    run = tmp_path / "it's a run"
    saving = ["save_strategy=steps", "save_steps=1"] if saves else ["save_strategy=no"]
    own = ["--model", str(model_folder), "--data", str(rows_file), "--output", str(run), "lora=null", "dtype=float32"]
    own += ["max_steps=6", "per_device_train_batch_size=2", "learning_rate=1e30", "optim=sgd", "max_grad_norm=0"]
    assert main(["train", *own, *saving, "max_not_finite_steps=2"]) == 2
    shown = capsys.readouterr()
    [line] = [line for line in shown.out.splitlines() if "reaches the first of them again" in line]
    program, *command = shlex.split(line.partition("stops there: ")[2])
    assert program == "honed" and any("resume_from_checkpoint" in word for word in command) == saves
    assert main(command) == 2
    first, again = told(run)[0], told(Path(f"{run}-replay"))
    assert again == [first] and len(told(run)) == 3 and first["rows"]
    assert f"the last of them step {first['step']} " in capsys.readouterr().err
    worst = json.loads((run / "worst_steps.json").read_text(encoding="utf-8"))["steps"]
    assert {step["step"] for step in worst} >= {step["step"] for step in told(run)}, "the last one, too"


def test_where_every_step_was_taken_there_is_none(tmp_path: Path) -> None:
    assert replay_command(tmp_path) is None
