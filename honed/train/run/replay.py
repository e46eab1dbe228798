"""Reports a run's worst and skipped steps, and the command that replays them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.errors import RunError
from honed.quantities import counted
from honed.train.ranks import Stopped
from honed.train.run_folder import checkpoint
from honed.train.run_folder.folder import RunFolder

if TYPE_CHECKING:
    from honed.train.trainer.watched import WatchedTrainer

NOT_FINITE = "not_finite.jsonl"


@contextmanager
def steps_told(trainer: Any, folder: RunFolder, say: Callable[[str], None]) -> Iterator[None]:
    """At the end of training, writes the steps with the highest losses and reports the skipped ones.

    Args:
        trainer: nothing is reported for one that does not watch its steps (the plain loop).
    """
    if not hasattr(trainer, "worst_steps"):
        yield
        return
    try:
        yield
    except (RunError, Stopped):
        with suppress(OSError, RunError):  # a full disk must not hide the original error
            _tell(trainer, folder, say)
        raise
    _tell(trainer, folder, say)


def _tell(trainer: WatchedTrainer, folder: RunFolder, say: Callable[[str], None]) -> None:
    folder.write_json("worst_steps.json", {"steps": trainer.worst_steps()})
    if command := replay_command(folder.path):
        count = trainer.watch.not_finite
        say(f"note: {counted(count, 'step was', 'steps were')} not taken; see {folder / NOT_FINITE}.")
        say(f"note: this command reaches the first of them again and stops there: {command}")


def replay_command(folder: Path) -> str | None:
    """Returns the command that replays a run up to its first skipped step; None if no step was skipped.

    It resumes in a new folder from the newest intact checkpoint before that step, or starts at the beginning. Nothing
    that affects a step changes, so the replay reaches the same step with the same weights.
    """
    try:
        first = json.loads((folder / NOT_FINITE).read_text(encoding="utf-8").partition("\n")[0])["step"]
    except FileNotFoundError:
        return None
    good, _ = checkpoint.latest_good(folder, before=first)
    words = ["honed", "train", str(folder / "recipe.yaml"), "--output", f"{folder}-replay", "max_not_finite_steps=0"]
    if good is not None:
        words.append(f"resume_from_checkpoint={json.dumps(str(good), ensure_ascii=False)}")  # valid YAML
    return shlex.join(words)
