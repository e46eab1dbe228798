"""The folder of a run: what is in it, its state, and how files are written whole or not at all."""

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

# Files of an earlier run that would be taken for the new one's.
RECORDS = ("ledger.json", "samples.json", "worst_steps.json", "report.html")
WEIGHTS = ("adapter_config.json", "adapter_model*", "config.json", "model*.safetensors*")


class RunFolder:
    """A run's folder.

        adapter_model.safetensors or model.safetensors, tokenizer, generation_config.json   what was trained
        recipe.yaml      the recipe as run        run.json       status, times, versions, device
        metrics.jsonl    one line per log         ledger.json    every row accounted for
        samples.json     before and after         report.html    all of this to look at
        README.md        the card, for the Hub
        worst_steps.json the steps with the highest losses, with their rows
        not_finite.jsonl the steps that were not taken, with their rows; only where there are any

    Args:
        path: created if need be.

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
        """`run.json`, or {} where there is none that can be read."""
        return self.read_json("run.json")

    def finished(self, recipe_yaml: str) -> bool:
        """True when this folder holds a finished run of exactly this recipe."""
        try:
            same = (self / "recipe.yaml").read_text(encoding="utf-8") == recipe_yaml
        except OSError:
            return False
        return same and self.state().get("status") == "finished"

    @contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[None]:
        """Keeps other runs out of the folder while the block runs; see `run_lock`.

        Raises:
            RunError: another run is in it.
        """
        with ExitStack() as stack:
            with storage_errors(self.path):
                note = stack.enter_context(run_lock(self.path))
            if note:
                say(f"note: {note}")
            yield

    def claim(self, recipe_yaml: str, *, overwrite: bool) -> None:
        """Makes sure that no other run's results are lost or taken for this run's.

        Raises:
            RunError: the folder holds a finished run, or files that are not a run's.
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
        """Writes a temporary file and renames it, so that readers never see half of it."""
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
        """A folder to save a model in; its files replace an earlier model's when the block ends well."""
        beside = self / f".saving-{os.getpid()}"
        with storage_errors(self.path):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            try:
                yield beside
                # an adapter beside a whole model would be taken for a part of it
                for stale in [file for pattern in WEIGHTS for file in self.path.glob(pattern)]:
                    stale.unlink()
                for file in sorted(beside.iterdir()):
                    file.replace(self / file.name)
            finally:
                shutil.rmtree(beside, ignore_errors=True)

    def need_space(self, n_bytes: int) -> None:
        """Refuses to start a run whose result would not fit on the disk.

        Raises:
            RunError: less than this is free.
        """
        free = shutil.disk_usage(self.path).free
        if free < n_bytes:
            raise RunError(
                f"{self.path}: {free / 1e9:.2f} GB free, and the trained weights need {n_bytes / 1e9:.2f} GB.",
                fix="free some space, or name a folder on another disk with output=FOLDER",
            )


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file, or {} where there is none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
