"""What training does with a recipe's output folder: refuses to replace an unfinished run of another recipe.

`output_state` predicts it without changing the folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from honed.errors import RunError
from honed.recipe import Recipe
from honed.train.run_folder.folder import RunFolder, json_object
from honed.train.run_folder.lock import LOCK
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputState:
    """What would happen to the folder (`says`), and why training would be refused, if at all (`stops`, else "")."""

    says: str
    stops: str = ""


def output_state(recipe: Recipe, *, overwrite: bool = False) -> OutputState:
    """Predicts what `run` would do with the folder; `RunFolder.claim` and `keep_another` are what refuses."""
    folder = Path(recipe.output).expanduser()
    if not folder.exists():
        return _new(folder)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return OutputState(says="refused", stops=f"{folder} cannot be written: output=OTHER_FOLDER.")
    state = json_object(folder / "run.json")
    if not state:
        if any(path.name != LOCK for path in folder.iterdir()):
            return OutputState(says="refused", stops=f"{folder} is not empty and holds no run: output=NEW_FOLDER.")
        return OutputState(says="an empty folder")
    return _of_run(folder, recipe, finished=state.get("status") == "finished", overwrite=overwrite)


def _of_run(folder: Path, recipe: Recipe, *, finished: bool, overwrite: bool) -> OutputState:
    kind = "finished" if finished else "unfinished"
    if overwrite:
        return OutputState(says=f"replaces the {kind} run that is there")
    if finished:
        return OutputState(
            says="refused", stops=f"{folder} holds a finished run: training needs --overwrite, or output=OTHER_FOLDER."
        )
    if not any(folder.glob("checkpoint-*")):
        return OutputState(says="replaces an unfinished run without checkpoints")
    if not holds_checkpoints_of_another(folder, recipe):
        return OutputState(says="resumes from the last checkpoint of the unfinished run that is there")
    return OutputState(
        says="refused",
        stops=f"{folder} holds checkpoints of an unfinished run of another recipe: training needs --overwrite, "
        "output=OTHER_FOLDER, or resume_from_checkpoint=CHECKPOINT.",
    )


def _new(folder: Path) -> OutputState:
    """The state of a missing folder, which can be created if its nearest existing parent is writable."""
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if above.is_dir() and os.access(above, os.W_OK):
        return OutputState(says="a new folder")
    return OutputState(says="refused", stops=f"{folder} cannot be made in {above}: output=OTHER_FOLDER.")
