"""Unfinished runs, which another recipe must not replace without a word."""

from __future__ import annotations

from honed.errors import RunError
from honed.recipe import Recipe
from honed.train.run_folder.folder import RunFolder
from honed.train.run_folder.secrets import masked_yaml


def keep_another(folder: RunFolder, recipe: Recipe) -> None:
    """Refuses to begin anew where an unfinished run of another recipe could still be gone on with.

    Raises:
        RunError: there is one, and the recipe does not say to go on from its checkpoint.
    """
    try:
        there = (folder / "recipe.yaml").read_text(encoding="utf-8")
    except OSError:
        return
    same = there == masked_yaml(recipe) or recipe.train.get("resume_from_checkpoint")
    unfinished = folder.state().get("status") != "finished"
    if unfinished and not same and any(folder.path.glob("checkpoint-*")):
        raise RunError(
            f"{folder.path} holds checkpoints of an unfinished run of another recipe.",
            fix="add output=OTHER_FOLDER, --overwrite to begin anew, or resume_from_checkpoint=CHECKPOINT to go on",
        )
