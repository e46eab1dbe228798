"""Checkpoints that are verified to be complete: written to a temporary folder, flushed, checksummed, renamed.

    RUN/checkpoint-12/
        weights.safetensors   the trained weights, in the dtype in which they are trained
        state.pt              optimizer, gradient scaler, random generators of every rank
        position.json         the run's position in the data, and its identity
        manifest.json         bytes and SHA-256 of the other files; written last

`seal` and `check` work on any folder, whatever wrote its files.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from honed.errors import RunError, first_line, storage_errors
from honed.train.ranks import is_lost_rank
from honed.train.run_folder import other_ranks
from honed.train.run_folder.engines import why_another

MANIFEST, WEIGHTS, STATE, POSITION = "manifest.json", "weights.safetensors", "state.pt", "position.json"
FORMAT = 1
_NAME = re.compile(r"checkpoint-\d+")
_PART = ".checkpoint-part-"
_CHUNK = 1 << 22  # bytes hashed at a time

Alike = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
"""Whether two identities, there and here, are of runs that go on from each other's checkpoints as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that a run needs to resume as if it had not stopped.

    Attributes:
        weights: parameter name -> tensor, for all trained parameters.
        optimizer, scaler: their `state_dict`.
        random: the state of each rank's random generators.
        position: the run's position, as JSON; `step` counts optimizer steps.
        identity: what distinguishes this run from others (settings, data, model), as JSON.
    """

    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    random: list[dict[str, Any]]
    position: Mapping[str, Any]
    identity: Mapping[str, Any]


def save(folder: str | Path, state: State) -> Path:
    """Writes `checkpoint-STEP` into a run's folder, either completely or not at all.

    Raises:
        RunError: the disk is full or cannot be written; what was there before is as it was.
    """
    from safetensors.torch import save_file

    with written(folder, state.position["step"]) as part:
        save_file({name: tensor.detach().contiguous() for name, tensor in state.weights.items()}, part / WEIGHTS)
        torch.save({"optimizer": state.optimizer, "scaler": state.scaler, "random": state.random}, part / STATE)
        write_position(part, state.position, state.identity)
    return Path(folder) / part.name


@contextmanager
def written(
    folder: str | Path, step: int, *, first: bool = True, meet: Callable[[], Any] = lambda: None
) -> Iterator[Path]:
    """Yields a temporary folder for `checkpoint-STEP`, sealed and renamed when the block ends without an error.

    Args:
        step: the checkpoint's step; an existing checkpoint of this step is replaced.
        first: whether this process creates and seals it; False for other processes that write into it.
        meet: a barrier of the processes that write into it.

    Raises:
        RunError: the disk is full or cannot be written; what was there before is as it was.
    """
    folder = Path(folder)
    place, beside = folder / f"checkpoint-{step}", folder / f"{_PART}{step}"
    with _storage(folder):
        try:
            if first:
                shutil.rmtree(beside, ignore_errors=True)
                (beside / place.name).mkdir(parents=True)
            meet()
            yield beside / place.name
            meet()
            if first:
                seal(beside / place.name)
                if place.exists():  # damaged, or from before the run was resumed at an earlier step
                    place.rename(beside / "old")
                (beside / place.name).rename(place)
                _flush(folder)
            meet()
        except (OSError, RuntimeError) as error:
            if first or is_lost_rank(error) or (beside / place.name).is_dir():
                raise
            problem = f"{place.name} was not written: the first process failed, and removed what it had written."
            raise RunError(problem, fix="see its message") from error
        finally:
            if first:
                shutil.rmtree(beside, ignore_errors=True)


def write_position(folder: Path, position: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Writes a run's position and identity into its checkpoint."""
    content = json.dumps({"position": position, "identity": identity}, indent=1)
    (folder / POSITION).write_text(content + "\n", encoding="utf-8")


def read_position(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `write_position` wrote; ({}, {}) if another program wrote the checkpoint."""
    try:
        content = json.loads((Path(path) / POSITION).read_text(encoding="utf-8"))
        return dict(content["position"]), dict(content["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


def load(path: str | Path, *, checked: bool = False) -> State:
    """Reads a checkpoint onto the CPU; nothing in it is executed.

    Args:
        checked: its files have just been checked, and are not hashed again.

    Raises:
        RunError: it is incomplete, or not one of honed's checkpoints.
    """
    from safetensors.torch import load_file

    path = Path(path)
    if not checked and (problems := check(path)):
        raise RunError(f"{path} is not a complete checkpoint: {problems[0]}.", fix="resume from an earlier one")
    try:
        training = torch.load(path / STATE, map_location="cpu", weights_only=True)
        where = json.loads((path / POSITION).read_text(encoding="utf-8"))
        return State(weights=load_file(path / WEIGHTS), **training, **where)
    except Exception as error:  # the three readers raise different types
        raise RunError(f"{path} cannot be read: {first_line(error)}", fix="resume from an earlier one") from None


def latest_good(
    folder: str | Path,
    identity: Mapping[str, Any] | None = None,
    *,
    before: float = math.inf,
    engine: str | None = None,
    alike: Alike = operator.eq,
) -> tuple[Path | None, list[str]]:
    """Returns the newest intact checkpoint of a run, and why each newer one was skipped.

    Args:
        identity: the identity that it must have; None for any.
        before: only checkpoints of earlier steps are considered.
        engine: the engine, in words, that must have written the optimizer's states; None for any.
        alike: compares identities.

    Raises:
        RunError: an intact one belongs to this run, but can be resumed directly only with another number of processes.
    """
    notes: list[str] = []
    for path in (path for path in _newest_first(folder) if _step_of(path) < before):
        damage = next(iter(check(path)), "")
        foreign = damage or _foreign(path, identity, alike)
        other_engine = "" if damage or not engine else why_another(path, engine)
        if not foreign and not other_engine:
            return path, notes
        if not damage and identity is not None:
            other_ranks.refuse(path, read_position(path)[1], _as_json(identity), other_engine)
        notes.append(f"{path.name} is skipped: {foreign or other_engine}.")
    return None, notes


def why_not(path: str | Path, identity: Mapping[str, Any] | None = None) -> str:
    """Returns why a checkpoint cannot be resumed (damaged, or another run's); "" if it can."""
    return next(iter(check(path)), "") or _foreign(Path(path), identity)


def prune(
    folder: str | Path,
    keep: int | None,
    *,
    known_good: Path | None = None,
    best: Path | None = None,
    others: Collection[Path] = (),
) -> list[Path]:
    """Deletes all but the newest `keep` checkpoints, and partial ones that killed processes left.

    The newest intact one is always kept, however many damaged ones are newer.

    Args:
        folder: the run's folder; no other process may be saving in it.
        keep: at least 1; None keeps all.
        known_good: the checkpoint that was just written: it is kept, and not hashed again.
        best: a checkpoint that is also kept.
        others: checkpoints that are neither counted nor deleted; see `of_others`.

    Returns:
        The deleted checkpoints.
    """
    for left in Path(folder).glob(f"{_PART}*"):
        shutil.rmtree(left, ignore_errors=True)
    paths = [] if keep is None else [path for path in _newest_first(folder) if path not in others]
    if keep is None or len(paths) <= keep:
        return []
    newest_good = next((path for path in paths if path == known_good or not check(path)), None)
    old = [path for path in paths[max(keep, 1) :] if path not in (newest_good, known_good, best)]
    for path in old:
        _delete(path)
    return old


def of_others(folder: str | Path, identity: Mapping[str, Any], alike: Alike = operator.eq) -> list[Path]:
    """Returns the checkpoints of other runs and programs, which this run's limit must not delete; newest first."""
    return [path for path in _newest_first(folder) if _foreign(path, identity, alike)]


def keep_only(best: Path, *, others: Collection[Path]) -> None:
    """Deletes a run's checkpoints except the best, as transformers does at the end with `save_total_limit=1`."""
    for path in _newest_first(best.parent):
        if path != best and path not in others:
            _delete(path)


def clear(folder: str | Path) -> None:
    """Deletes all checkpoints of a run."""
    for path in [*Path(folder).glob(f"{_PART}*"), *_newest_first(folder)]:
        shutil.rmtree(path, ignore_errors=True)


def seal(folder: str | Path) -> None:
    """Flushes every file of a folder to disk, and writes the manifest with their bytes and SHA-256."""
    folder = Path(folder)
    files = {}
    for path in _files(folder):
        _flush(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n", encoding="utf-8")
    _flush(manifest)
    _flush(folder)


def check(folder: str | Path) -> list[str]:
    """Returns what is wrong with a sealed folder; [] if every file is unchanged."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        known, files = manifest["format"], dict(manifest["files"])
    except FileNotFoundError:
        return [f"{MANIFEST} is missing, so it was not finished"]
    except (OSError, ValueError, TypeError, KeyError):
        return [f"{MANIFEST} cannot be read"]
    if known != FORMAT:
        return [f"{MANIFEST} is of format {known}, and this is format {FORMAT}"]
    found = (_wrong(folder / name, name, sealed) for name, sealed in files.items())
    return [problem for problem in found if problem]


def _delete(path: Path) -> None:
    """Renames the folder first: what a crash leaves is then not a checkpoint, and the next `prune` deletes it."""
    part = path.rename(path.with_name(f"{_PART}{_step_of(path)}"))
    shutil.rmtree(part, ignore_errors=True)


def _foreign(path: Path, identity: Mapping[str, Any] | None, alike: Alike = operator.eq) -> str:
    """Returns "it is another run's: learning_rate is 0.1 there, 0.2 here", or ""."""
    if identity is None:
        return ""
    there, here = read_position(path)[1], _as_json(identity)
    if not there:
        return "it was made by another program"
    return "" if alike(there, here) else f"it is another run's: {'; '.join(differences(there, here)[:3])}"


def _as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the identity as read from a file, where tuples are lists."""
    return dict(json.loads(json.dumps(identity)))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Returns 'learning_rate is 0.1 there, 0.2 here' for each key that differs."""
    other = [key for key in sorted(here.keys() | there.keys()) if there.get(key) != here.get(key)]
    return [f"{key} is {there.get(key)!r:.60} there, {here.get(key)!r:.60} here" for key in other]


def _wrong(path: Path, name: str, sealed: Mapping[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != sealed["bytes"]:
            return f"{name} has {size:,} bytes, and {sealed['bytes']:,} were written"
        return "" if _sha256(path) == sealed["sha256"] else f"{name} is not what was written (its SHA-256 differs)"
    except FileNotFoundError:
        return f"{name} is missing"
    except (OSError, KeyError, TypeError) as error:
        return f"{name} cannot be checked ({error})"


def _newest_first(folder: str | Path) -> list[Path]:
    found = [path for path in Path(folder).glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Flushes a file or folder to disk; Windows cannot open folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def failures_of_ranks() -> Iterator[None]:
    """A block that writes shards: torch's error, raised on all ranks, becomes the error of the first failed rank."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:  # not an Exception, so nothing else catches it
        raise next(reason for reason, _ in error.failures.values()) from None


@contextmanager
def _storage(folder: Path) -> Iterator[None]:
    """Converts operating system errors into a RunError with a fix."""
    from safetensors import SafetensorError

    try:
        with storage_errors(folder):
            yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer raises RuntimeError
        if is_lost_rank(error):  # not the disk's fault
            raise
        raise RunError(
            f"No checkpoint could be written in {folder}: {first_line(error)}", fix="check the disk"
        ) from None
