"""Protects unfinished runs from being replaced silently by another recipe."""

from __future__ import annotations

from pathlib import Path

from honed.errors import RunError
from honed.recipe import Recipe
from honed.train.run_folder.folder import RunFolder
from honed.train.run_folder.secrets import masked_yaml


def keep_another(folder: RunFolder, recipe: Recipe) -> None:
    """Refuses to start a run in the folder of an unfinished run of another recipe that could still be resumed.

    Raises:
        RunError: there is such a run, and the recipe does not resume from a checkpoint.
    """
    if folder.state().get("status") != "finished" and holds_checkpoints_of_another(folder.path, recipe):
        raise RunError(
            f"{folder.path} holds checkpoints of an unfinished run of another recipe.",
            fix="add output=OTHER_FOLDER, --overwrite to start over, or resume_from_checkpoint=CHECKPOINT to resume",
        )


def holds_checkpoints_of_another(folder: Path, recipe: Recipe) -> bool:
    """Whether a folder holds checkpoints of another recipe, and this recipe does not resume from one by name."""
    try:
        there = (folder / "recipe.yaml").read_text(encoding="utf-8")
    except OSError:
        return False
    same = there == masked_yaml(recipe) or recipe.train.get("resume_from_checkpoint")
    return not same and any(folder.glob("checkpoint-*"))
