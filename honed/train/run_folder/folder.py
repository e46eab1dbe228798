"""A run's folder: its contents, its state, and files that are written completely or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from honed.errors import RunError, storage_errors
from honed.train.run_folder.lock import LOCK, run_lock

# Files of an earlier run that would be mistaken for the new one's.
RECORDS = ("ledger.json", "samples.json", "worst_steps.json", "report.html")
WEIGHTS = ("adapter_config.json", "adapter_model*", "config.json", "model*.safetensors*")


class RunFolder:
    """A run's folder.

        adapter_model.safetensors or model.safetensors, tokenizer, generation_config.json   the trained model
        recipe.yaml      the recipe that ran      run.json       status, times, versions, device
        metrics.jsonl    one line per log         ledger.json    every row accounted for
        samples.json     before and after         report.html    a page with all of this
        README.md        the model card
        worst_steps.json the steps with the highest losses, with their rows
        not_finite.jsonl the skipped steps, with their rows; only if there are any

    Args:
        path: created if necessary.

    Raises:
        RunError: it cannot be created or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        with storage_errors(self.path, every=True):
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".write_test.{os.getpid()}"
            probe.touch()
            probe.unlink()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def state(self) -> dict[str, Any]:
        """Returns `run.json`, or {} if it is missing or unreadable."""
        return self.read_json("run.json")

    def finished(self, recipe_yaml: str) -> bool:
        """Whether this folder holds a finished run of exactly this recipe."""
        try:
            same = (self / "recipe.yaml").read_text(encoding="utf-8") == recipe_yaml
        except OSError:
            return False
        return same and self.state().get("status") == "finished"

    @contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[None]:
        """Keeps other runs out of the folder within the block; see `run_lock`.

        Raises:
            RunError: another run is using it.
        """
        with ExitStack() as stack:
            with storage_errors(self.path):
                note = stack.enter_context(run_lock(self.path))
            if note:
                say(f"note: {note}")
            yield

    def claim(self, recipe_yaml: str, *, overwrite: bool) -> None:
        """Makes sure that no other run's results are lost or mistaken for this run's.

        Raises:
            RunError: the folder holds a finished run, or files that do not belong to a run.
        """
        if not overwrite and self.state().get("status") == "finished":
            same = "this recipe" if self.finished(recipe_yaml) else "another recipe"
            raise RunError(
                f"{self.path} holds a finished run of {same}.",
                fix="add output=OTHER_FOLDER, or --overwrite to replace it",
            )
        if not self.state() and any(path.name != LOCK for path in self.path.iterdir()):
            raise RunError(f"{self.path} is not empty and holds no run.", fix="name a new folder with output=FOLDER")
        with storage_errors(self.path):
            for name in RECORDS:
                (self / name).unlink(missing_ok=True)

    def read_json(self, name: str) -> dict[str, Any]:
        """See `json_object`."""
        return json_object(self / name)

    def write_text(self, name: str, text: str) -> None:
        """Writes a temporary file and renames it, so that readers never see a partial file."""
        with storage_errors(self.path):
            beside = self / f".{name}.{os.getpid()}"
            try:
                beside.write_text(text, encoding="utf-8")
                beside.replace(self / name)
            finally:
                beside.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, ensure_ascii=False, indent=1) + "\n")

    @contextmanager
    def saving(self) -> Iterator[Path]:
        """Yields a folder to save a model in; its files replace an earlier model's if the block succeeds."""
        beside = self / f".saving-{os.getpid()}"
        with storage_errors(self.path):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            try:
                yield beside
                # An adapter next to a whole model would be mistaken for a part of it.
                for stale in [file for pattern in WEIGHTS for file in self.path.glob(pattern)]:
                    stale.unlink()
                for file in sorted(beside.iterdir()):
                    file.replace(self / file.name)
            finally:
                shutil.rmtree(beside, ignore_errors=True)

    def need_space(self, n_bytes: int) -> None:
        """Refuses to start a run whose result does not fit on the disk.

        Raises:
            RunError: less space than this is free.
        """
        free = shutil.disk_usage(self.path).free
        if free < n_bytes:
            raise RunError(
                f"{self.path}: {free / 1e9:.2f} GB free, and the trained weights need {n_bytes / 1e9:.2f} GB.",
                fix="free some space, or name a folder on another disk with output=FOLDER",
            )


def json_object(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file, or {} if it is missing or unreadable."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
