"""`save_total_limit`: deletes this run's own checkpoints, never those of other runs and programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from honed.train.run_folder import checkpoint

Checkpoints = Callable[[Path], list[Path]]


class Rotation:
    """Replaces transformers' rotation, which identifies checkpoints by their names only.

    Args:
        args, state: the trainer's.
        of_others: returns the checkpoints in a folder that belong to other runs.
        say: receives one line if there are any.
    """

    def __init__(self, args: Any, state: Any, *, of_others: Checkpoints, say: Callable[[str], None]) -> None:
        limit: int | None = args.save_total_limit
        self._limit = limit if limit and limit > 0 else None
        self._state, self._of_others, self._say, self._told = state, of_others, say, False

    def after_saving(self, newest: Path) -> None:
        """Deletes the oldest checkpoints beyond the limit, and partial ones that killed processes left."""
        others = [] if self._limit is None else self._of_others(newest.parent)
        if others and not self._told:
            self._told = True
            names = ", ".join(path.name for path in others)
            self._say(f"save_total_limit leaves {names} as they are: they are not from this run.")
        checkpoint.prune(newest.parent, self._limit, known_good=newest, best=self._best(), others=others)

    def at_the_end(self) -> None:
        """With a limit of 1, keeps only the best checkpoint, as transformers does."""
        best = self._best()
        if self._limit == 1 and best is not None:
            checkpoint.keep_only(best, others=self._of_others(best.parent))

    def _best(self) -> Path | None:
        best: str | None = self._state.best_model_checkpoint
        return None if best is None else Path(best)
