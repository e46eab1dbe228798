"""Checkpoints that are verifiably whole: written to a temporary folder, flushed, checksummed, renamed.

    RUN/checkpoint-12/
        weights.safetensors   what is trained, in the number format that it is trained in
        state.pt              optimizer, gradient scaler, random generators of every rank
        position.json         where in the data the run stands, and which run it is
        manifest.json         bytes and SHA-256 of each of the others; written last

`seal` and `check` work on any folder, whoever wrote what is in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import random
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
    """All that a run needs to resume as if it had not stopped.

    Attributes:
        weights: parameter name -> tensor, of everything that is trained.
        optimizer, scaler: their `state_dict`.
        random: `random_state` of each rank.
        position: where the run stands, as JSON; `step` counts optimizer steps.
        identity: what makes it this run and no other (settings, data, model), as JSON.
    """

    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    random: list[dict[str, Any]]
    position: Mapping[str, Any]
    identity: Mapping[str, Any]


def save(folder: str | Path, state: State) -> Path:
    """Writes `checkpoint-STEP` into a run's folder: it appears whole, or not at all.

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
    """A temporary folder for `checkpoint-STEP`, sealed and renamed when the block ends without an error.

    Args:
        step: of the checkpoint; an earlier one of this step is replaced.
        first: whether this process creates and seals it; False for others that write into it.
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
                if place.exists():  # damaged, or written before the run was resumed from an earlier one
                    place.rename(beside / "old")
                (beside / place.name).rename(place)
                _flush(folder)
            meet()
        except (OSError, RuntimeError) as error:
            if first or is_lost_rank(error) or (beside / place.name).is_dir():
                raise
            problem = f"{place.name} was not written: the first process gave up, and took away what there was of it."
            raise RunError(problem, fix="see what that one said") from error
        finally:
            if first:
                shutil.rmtree(beside, ignore_errors=True)


def write_position(folder: Path, position: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Writes where a run stands and which run it is into its checkpoint."""
    content = json.dumps({"position": position, "identity": identity}, indent=1)
    (folder / POSITION).write_text(content + "\n", encoding="utf-8")


def read_position(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `write_position` wrote; ({}, {}) where another program made the checkpoint."""
    try:
        content = json.loads((Path(path) / POSITION).read_text(encoding="utf-8"))
        return dict(content["position"]), dict(content["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


def load(path: str | Path, *, checked: bool = False) -> State:
    """Reads a checkpoint onto the CPU; nothing in it is executed.

    Args:
        checked: its files were checked just now, and need not be hashed again.

    Raises:
        RunError: it is not whole, or not a checkpoint of honed.
    """
    from safetensors.torch import load_file

    path = Path(path)
    if not checked and (problems := check(path)):
        raise RunError(f"{path} is no whole checkpoint: {problems[0]}.", fix="resume from an earlier one")
    try:
        training = torch.load(path / STATE, map_location="cpu", weights_only=True)
        where = json.loads((path / POSITION).read_text(encoding="utf-8"))
        return State(weights=load_file(path / WEIGHTS), **training, **where)
    except Exception as error:  # each of the three readers raises kinds of its own
        raise RunError(f"{path} cannot be read: {first_line(error)}", fix="resume from an earlier one") from None


def latest_good(
    folder: str | Path,
    identity: Mapping[str, Any] | None = None,
    *,
    before: float = math.inf,
    engine: str | None = None,
    alike: Alike = operator.eq,
) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and why each newer one was skipped.

    Args:
        identity: what it must agree with; None to take any.
        before: only checkpoints of earlier steps are considered.
        engine: in words, which must have written the optimizer's states; None for any.
        alike: what "agree" means.

    Raises:
        RunError: a whole one is this run's, but only another number of processes can go on from it as it is.
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
        notes.append(f"{path.name} is passed over: {foreign or other_engine}.")
    return None, notes


def why_not(path: str | Path, identity: Mapping[str, Any] | None = None) -> str:
    """Why a checkpoint cannot be resumed: it is damaged, or another run's; "" where it can."""
    return next(iter(check(path)), "") or _foreign(Path(path), identity)


def prune(
    folder: str | Path,
    keep: int | None,
    *,
    known_good: Path | None = None,
    best: Path | None = None,
    others: Collection[Path] = (),
) -> list[Path]:
    """Deletes all but the newest `keep` checkpoints, and what killed processes left half-written.

    The newest whole one is always kept, however many damaged ones are newer.

    Args:
        folder: of the run; no other process may be saving in it.
        keep: at least 1; None keeps all.
        known_good: was written just now: it is kept, and not hashed again.
        best: is kept too.
        others: are neither counted nor deleted; see `of_others`.

    Returns:
        The checkpoints deleted.
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
    """The checkpoints of other runs and programs, which no limit on this run's own may delete; newest first."""
    return [path for path in _newest_first(folder) if _foreign(path, identity, alike)]


def keep_only(best: Path, *, others: Collection[Path]) -> None:
    """Deletes a run's checkpoints beside the best one, as transformers does at the end with `save_total_limit=1`."""
    for path in _newest_first(best.parent):
        if path != best and path not in others:
            _delete(path)


def clear(folder: str | Path) -> None:
    """Deletes all checkpoints of a run."""
    for path in [*Path(folder).glob(f"{_PART}*"), *_newest_first(folder)]:
        shutil.rmtree(path, ignore_errors=True)


def seal(folder: str | Path) -> None:
    """Flushes every file of a folder to the disk and writes the manifest: their bytes and SHA-256."""
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
    """What is wrong with a sealed folder; [] where every file is as it was sealed."""
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


def random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state of every random generator of this process, in types that `torch.load(weights_only=True)` reads."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    kind = torch.device(device).type
    if kind in ("cuda", "mps"):
        state[kind] = getattr(torch, kind).get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores every random generator of this process."""
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for kind in ("cuda", "mps"):
        module = getattr(torch, kind)
        if kind in state and module.is_available():
            module.set_rng_state(state[kind])


def _delete(path: Path) -> None:
    """Takes the name away first: what a crash leaves is no checkpoint, and the next `prune` deletes it."""
    part = path.rename(path.with_name(f"{_PART}{_step_of(path)}"))
    shutil.rmtree(part, ignore_errors=True)


def _foreign(path: Path, identity: Mapping[str, Any] | None, alike: Alike = operator.eq) -> str:
    """'it is another run's: learning_rate is 0.1 there, 0.2 here', or ''."""
    if identity is None:
        return ""
    there, here = read_position(path)[1], _as_json(identity)
    if not there:
        return "it was made by another program"
    return "" if alike(there, here) else f"it is another run's: {'; '.join(differences(there, here)[:3])}"


def _as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As it is in a file, where tuples are lists."""
    return dict(json.loads(json.dumps(identity)))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """'learning_rate is 0.1 there, 0.2 here', for each key that differs."""
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
    """Flushes a file or folder to the disk; Windows cannot open folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def failures_of_ranks() -> Iterator[None]:
    """A block that writes in parts: torch's error, which all ranks get, becomes that of the first rank that failed."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:  # no Exception: nothing else here would catch it
        raise next(reason for reason, _ in error.failures.values()) from None


@contextmanager
def _storage(folder: Path) -> Iterator[None]:
    """Turns errors of the operating system into a RunError with a fix."""
    from safetensors import SafetensorError

    try:
        with storage_errors(folder):
            yield
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: of torch's writer
        if is_lost_rank(error):  # no fault of the disk's
            raise
        raise RunError(
            f"No checkpoint could be written in {folder}: {first_line(error)}", fix="check the disk"
        ) from None
