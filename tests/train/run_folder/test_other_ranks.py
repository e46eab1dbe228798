"""Checkpoints of the same run on another number of processes: gone on from where steps keep their rows, or kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from honed.errors import RunError
from honed.train.run_folder import checkpoint
from honed.train.run_folder.other_ranks import keep_rows

HERE: dict[str, Any] = {"ranks": 4, "gradient_accumulation_steps": 2, "seed": 1, "dataloader_drop_last": False}
TOKENS = {**HERE, "tokens_per_step": 4096, "gradient_accumulation_steps": 1}


def saved(folder: Path, step: int, identity: dict[str, Any]) -> Path:
    """A whole checkpoint without weights."""
    with checkpoint.written(folder, step) as part:
        checkpoint.write_position(part, {"step": step}, identity)
    return folder / f"checkpoint-{step}"


@pytest.mark.parametrize(
    ("here", "changes", "kept"),
    [
        (HERE, {}, True),
        (HERE, {"ranks": 8, "gradient_accumulation_steps": 1}, True),
        (HERE, {"ranks": 8, "sequence_parallel_size": 2}, True),
        (HERE, {"ranks": 8}, False),
        (HERE, {"gradient_accumulation_steps": 4}, False),
        (HERE, {"ranks": 8, "gradient_accumulation_steps": 1, "seed": 2}, False),
        (TOKENS, {"ranks": 3}, True),
        (TOKENS, {"ranks": 3, "tokens_per_step": 1024}, False),
        ({**HERE, "dataloader_drop_last": True}, {"ranks": 8, "gradient_accumulation_steps": 1}, False),
        ({**HERE, "split_batches": True}, {"ranks": 8, "gradient_accumulation_steps": 1}, False),
    ],
)
def test_which_steps_keep_their_rows(here: dict[str, Any], changes: dict[str, Any], kept: bool) -> None:
    assert keep_rows({**here, **changes}, here) is kept


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        (
            HERE,
            {"ranks": 2},
            r"on 2 processes.*on 4 processes.*\n.*gradient_accumulation_steps=1, so that each",
        ),
        (HERE, {"ranks": 3}, r"on 3 processes.*\n.*checkpoint-1, where steps may have other rows"),
        (HERE, {"ranks": 8, "gradient_accumulation_steps": 1}, r"\n.*checkpoint-1, where the last steps of an epoch"),
        (
            {"ranks": 1, "accumulation": 2},
            {"ranks": 2},
            r"overwrite it.\n  fix: start 2 processes again; or start over",
        ),
    ],
)
def test_nothing_is_begun_anew_over_them(here: dict[str, Any], there: Any, words: str, tmp_path: Path) -> None:
    """Where a checkpoint must agree in everything, as in the loop, and for rows that are not honed's."""
    saved(tmp_path, 1, {**here, **there})
    with pytest.raises(RunError, match=words):
        checkpoint.latest_good(tmp_path, here)
    newest = saved(tmp_path, 2, here)
    assert checkpoint.latest_good(tmp_path, here) == (newest, [])


def test_a_run_with_other_settings_too_is_another(tmp_path: Path) -> None:
    saved(tmp_path, 1, {**HERE, "ranks": 2, "seed": 2})
    path, [note] = checkpoint.latest_good(tmp_path, HERE)
    assert path is None and "another run's: ranks is 2 there, 4 here; seed is 2 there, 1 here" in note


def test_another_engine_s_is_refused_with_its_reason(tmp_path: Path) -> None:
    other = saved(tmp_path, 1, {**HERE, "ranks": 8, "gradient_accumulation_steps": 1})
    (other / "latest").write_text("global_step1")
    checkpoint.seal(other)
    with pytest.raises(
        RunError, match=r"optimizer states are of DeepSpeed.*\n  fix: start 8 processes again; or start over"
    ):
        checkpoint.latest_good(tmp_path, HERE, engine="one process or DDP", alike=keep_rows)
