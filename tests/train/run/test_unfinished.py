"""A recipe that was changed does not silently replace the checkpoints of the run that it was before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from honed.errors import RunError
from honed.recipe import Recipe, recipe_from
from honed.train.run.output import keep_another
from honed.train.run_folder.folder import RunFolder
from honed.train.run_folder.secrets import masked_yaml


def recipe(**train: Any) -> Recipe:
    return recipe_from({"model": "tiny", "data": {"files": ["rows.jsonl"]}, "train": train})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Of a run that was cut short after its third step."""
    made = RunFolder(tmp_path / "run")
    made.write_text("recipe.yaml", masked_yaml(recipe(learning_rate=0.1)))
    made.write_json("run.json", {"status": "interrupted"})
    (made / "checkpoint-3").mkdir()
    return made


def test_another_recipe_is_refused(folder: RunFolder) -> None:
    with pytest.raises(RunError, match=r"an unfinished run of another recipe(.|\n)*--overwrite"):
        keep_another(folder, recipe(learning_rate=0.2))
    assert (folder / "checkpoint-3").is_dir()


def test_the_same_goes_on(folder: RunFolder) -> None:
    keep_another(folder, recipe(learning_rate=0.1))


def test_going_on_with_changes_is_a_choice(folder: RunFolder) -> None:
    keep_another(folder, recipe(learning_rate=0.2, resume_from_checkpoint=str(folder / "checkpoint-3")))


@pytest.mark.parametrize("status", ["finished", "no checkpoint"])
def test_where_nothing_can_be_gone_on_with(status: str, folder: RunFolder) -> None:
    """Of a finished run, `RunFolder.claim` tells."""
    folder.write_json("run.json", {"status": status})
    if status == "no checkpoint":
        (folder / "checkpoint-3").rmdir()
    keep_another(folder, recipe(learning_rate=0.2))
