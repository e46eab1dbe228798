"""Checkpoints are whole or seen not to be, and the last whole one is never lost."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from honed.errors import RunError
from honed.train.loop.state import random_state, set_random_state
from honed.train.run_folder import checkpoint
from honed.train.run_folder.checkpoint import State, check, latest_good, load, of_others, prune, save, seal, why_not

FILES = {"weights.safetensors", "state.pt", "position.json", "manifest.json"}


def state_at(step: int, **changes: Any) -> State:
    parts: dict[str, Any] = {
        "weights": {"a": torch.arange(6.0).view(2, 3) + step, "b": torch.ones(3, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}}, "param_groups": [{}]},
        "scaler": {},
        "random": [random_state()],
        "position": {"step": step, "epoch": 0},
        "identity": {"learning_rate": 0.1, "betas": (0.9, 0.999)},
    }
    return State(**{**parts, **changes})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    state = state_at(12)
    path = save(tmp_path, state)
    assert path == tmp_path / "checkpoint-12"
    assert names(tmp_path) == {"checkpoint-12"} and names(path) == FILES
    assert check(path) == []
    back = load(path)
    assert back.weights.keys() == state.weights.keys()
    for name, tensor in state.weights.items():
        assert back.weights[name].dtype == tensor.dtype and torch.equal(back.weights[name], tensor)
    kept = back.optimizer["state"][0]
    assert torch.equal(kept["exp_avg"], state.optimizer["state"][0]["exp_avg"])
    assert back.position == state.position and back.identity["learning_rate"] == 0.1


def test_every_random_generator_goes_on_where_it_stood(tmp_path: Path) -> None:
    random.gauss(0, 1)  # half of a pair is kept for the next call
    np.random.standard_normal(3)
    path = save(tmp_path, state_at(1))
    expected = draws()
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    set_random_state(load(path).random[0])
    assert draws() == expected


def draws() -> list[float]:
    """A few numbers of every generator."""
    return [random.gauss(0, 1), random.random(), *np.random.standard_normal(3).tolist(), *torch.rand(3).tolist()]


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "harm"),))

    path = save(tmp_path, state_at(1))
    torch.save({"optimizer": Harm(), "scaler": {}, "random": []}, path / "state.pt")
    seal(path)
    assert check(path) == []
    with pytest.raises(RunError, match=r"cannot be read: UnpicklingError"):
        load(path)
    assert not (tmp_path / "harm").exists()


def torn(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-7])


TEARS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut weights": (torn("weights.safetensors"), r"weights\.safetensors has [\d,]+ bytes, and [\d,]+ were written"),
    "cut state": (torn("state.pt"), r"state\.pt has"),
    "a bit flipped": (lambda path: flip_a_bit(path / "weights.safetensors"), r"is not what was written \(its SHA-256"),
    "a file gone": (lambda path: (path / "state.pt").unlink(), r"state\.pt is missing"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "was not finished"),
    "manifest cut": (torn("manifest.json"), "cannot be read"),
    "manifest of zeros": (lambda path: (path / "manifest.json").write_bytes(b"\0" * 90), "cannot be read"),
    "a later format": (lambda path: (path / "manifest.json").write_text('{"format": 9, "files": {}}'), "format 9"),
    "a list": (lambda path: (path / "manifest.json").write_text("[]"), "cannot be read"),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_named_and_passed_over(tmp_path: Path, tear: str) -> None:
    good, newer = save(tmp_path, state_at(9)), save(tmp_path, state_at(10))
    damage, words = TEARS[tear]
    damage(newer)
    path, notes = latest_good(tmp_path)
    assert path == good
    [note] = notes
    assert note.startswith("checkpoint-10 is skipped: ")
    with pytest.raises(RunError, match=words):
        load(newer)
    assert why_not(newer) in note and why_not(good) == ""


def test_a_foreign_checkpoint_is_named_and_passed_over(tmp_path: Path) -> None:
    own = save(tmp_path, state_at(3))
    save(tmp_path, state_at(5, identity={"learning_rate": 0.2, "betas": (0.9, 0.999)}))
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "model.safetensors").write_bytes(b"another program's")
    (tmp_path / "checkpoint-last").mkdir()
    path, notes = latest_good(tmp_path, {"learning_rate": 0.1, "betas": (0.9, 0.999)})
    assert path == own
    assert notes == [
        "checkpoint-7 is skipped: manifest.json is missing, so it was not finished.",
        "checkpoint-5 is skipped: it is another run's: learning_rate is 0.2 there, 0.1 here.",
    ]
    assert latest_good(tmp_path)[0] == tmp_path / "checkpoint-5"
    assert latest_good(tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize("when", ["weights", "state", "position", "manifest", "rename"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = save(tmp_path, state_at(1))

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    places = {
        "weights": "safetensors.torch.save_file",
        "state": "torch.save",
        "position": "pathlib.Path.write_text",
        "manifest": "honed.train.run_folder.checkpoint.seal",
        "rename": "pathlib.Path.rename",
    }
    monkeypatch.setattr(places[when], full)
    with pytest.raises(RunError, match="No space is left"):
        save(tmp_path, state_at(2))
    monkeypatch.undo()
    assert names(tmp_path) == {"checkpoint-1"}
    assert latest_good(tmp_path) == (good, [])


def test_a_file_size_limit_is_an_error_to_mend(tmp_path: Path) -> None:
    """The operating system itself refuses, so torch's and safetensors' own errors come up."""
    resource = pytest.importorskip("resource")
    import signal

    save(tmp_path, state_at(1))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    big = {"weights": {"a": torch.zeros(1)}, "optimizer": {"a": torch.zeros(50_000)}}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        for state in (state_at(2, weights={"a": torch.zeros(50_000)}), state_at(2, **big)):
            with pytest.raises(RunError, match=r"cannot be written|could be written"):
                save(tmp_path, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == {"checkpoint-1"} and latest_good(tmp_path)[1] == []


def test_a_folder_that_cannot_be_written_is_an_error_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="file"):
        save(tmp_path / "file", state_at(1))


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in (2, 10, 9, 100):
        save(tmp_path, state_at(step))
    (tmp_path / ".checkpoint-part-1").mkdir()
    assert prune(tmp_path, None) == []
    assert {path.name for path in prune(tmp_path, 2)} == {"checkpoint-2", "checkpoint-9"}
    assert names(tmp_path) == {"checkpoint-10", "checkpoint-100"}


def test_pruning_neither_counts_nor_deletes_those_of_others(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, state_at(step, identity={"seed": step % 2}))
    others = of_others(tmp_path, {"seed": 0})
    assert [path.name for path in others] == ["checkpoint-5", "checkpoint-3", "checkpoint-1"]
    assert prune(tmp_path, 1, others=others) == [tmp_path / "checkpoint-2"]
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-3", "checkpoint-4", "checkpoint-5"}


def test_what_a_crash_leaves_of_a_deletion_is_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path, state_at(step))

    def killed(path: Path, **_: Any) -> None:
        (path / "position.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("honed.train.run_folder.checkpoint.shutil.rmtree", killed)
        prune(tmp_path, 1)
    assert latest_good(tmp_path, before=2) == (None, [])
    prune(tmp_path, 1)
    assert names(tmp_path) == {"checkpoint-2"}


def test_pruning_never_deletes_the_last_whole_one(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, state_at(step))
    for step in (3, 4):
        flip_a_bit(tmp_path / f"checkpoint-{step}" / "state.pt")
    assert prune(tmp_path, 1) == [tmp_path / "checkpoint-3", tmp_path / "checkpoint-1"]
    assert names(tmp_path) == {"checkpoint-4", "checkpoint-2"}
    assert latest_good(tmp_path)[0] == tmp_path / "checkpoint-2"


def test_a_checkpoint_made_again_replaces_the_torn_one(tmp_path: Path) -> None:
    flip_a_bit(save(tmp_path, state_at(4)) / "state.pt")
    again = save(tmp_path, state_at(4))
    assert check(again) == [] and names(tmp_path) == {"checkpoint-4"}


def test_any_folder_can_be_sealed(tmp_path: Path) -> None:
    """Whoever wrote it: subfolders too, and what came later is not asked about."""
    (tmp_path / "global_step1").mkdir()
    (tmp_path / "global_step1" / "rank0.pt").write_bytes(b"shard")
    (tmp_path / "trainer_state.json").write_text("{}")
    seal(tmp_path)
    assert check(tmp_path) == []
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert set(manifest["files"]) == {"global_step1/rank0.pt", "trainer_state.json"}
    (tmp_path / "notes.txt").write_text("later")
    assert check(tmp_path) == []
    (tmp_path / "global_step1" / "rank0.pt").write_bytes(b"shar")
    (tmp_path / "trainer_state.json").write_text("[]")
    assert len(check(tmp_path)) == 2
    seal(tmp_path)
    assert check(tmp_path) == []


@pytest.mark.parametrize("writer", ["torch", "Python"])
def test_a_process_beside_one_that_gave_up_says_so(writer: str, tmp_path: Path) -> None:
    """Its disk is full, say: it takes away the folder in which the others write."""

    def write(part: Path) -> None:
        torch.save({}, part / "rng_state_1.pth") if writer == "torch" else (part / "rng_state_1").write_text("")

    with (
        pytest.raises(RunError, match="the first process failed"),
        checkpoint.written(tmp_path, 3, first=False) as part,
    ):
        write(part)
    (tmp_path / ".checkpoint-part-3" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(RunError, match="of its own"), checkpoint.written(tmp_path, 3, first=False):
        raise RuntimeError("of its own")


def test_what_torch_says_of_parts_that_could_not_be_written(tmp_path: Path) -> None:
    """Its error is no Exception, so that nothing would have told of the full disk."""
    from torch.distributed.checkpoint import CheckpointException

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(RunError, match="No space is left"),
        checkpoint.written(tmp_path, 3),
        checkpoint.failures_of_ranks(),
    ):
        raise CheckpointException("write", {1: (full, None)})  # type: ignore[arg-type]
    assert names(tmp_path) == set()
