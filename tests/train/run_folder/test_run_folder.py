"""The run's folder: nobody's files are lost, and nothing in it is half written or another run's."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from honed.errors import RunError, storage_errors
from honed.train.run_folder.folder import RunFolder

RECIPE = "model: tiny\n"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "new")


def leave(folder: RunFolder, status: str, recipe: str = RECIPE) -> None:
    folder.write_text("recipe.yaml", recipe)
    folder.write_json("run.json", {"status": status})


def names(folder: RunFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


def test_it_is_made_and_left_empty(folder: RunFolder) -> None:
    assert names(folder) == set()


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert RunFolder("~/run").path == tmp_path / "run"


@pytest.mark.parametrize("content", ["", "{", "[1]", '"finished"', None])
def test_a_state_that_cannot_be_read_is_none(content: str | None, folder: RunFolder) -> None:
    if content is not None:
        (folder / "run.json").write_text(content)
    assert folder.state() == {}


@pytest.mark.parametrize(
    ("status", "recipe", "expected"),
    [("finished", RECIPE, True), ("finished", "other", False), ("interrupted", RECIPE, False)],
)
def test_finished(status: str, recipe: str, expected: bool, folder: RunFolder) -> None:
    assert not folder.finished(RECIPE)
    leave(folder, status)
    assert folder.finished(recipe) is expected


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_a_run_that_did_not_finish_may_start_again(status: str, folder: RunFolder) -> None:
    leave(folder, status)
    folder.claim(RECIPE, overwrite=False)
    assert folder.state() == {"status": status}


@pytest.mark.parametrize(("recipe", "whose"), [(RECIPE, "this recipe"), ("other", "another recipe")])
def test_a_finished_run_is_kept_unless_told(recipe: str, whose: str, folder: RunFolder) -> None:
    leave(folder, "finished")
    folder.write_json("samples.json", {})
    with pytest.raises(RunError, match=whose):
        folder.claim(recipe, overwrite=False)
    assert "samples.json" in names(folder)
    folder.claim(recipe, overwrite=True)
    assert "samples.json" not in names(folder), "the new run may have none, and would show these"


@pytest.mark.parametrize("overwrite", [True, False])
def test_other_files_are_never_written_over(overwrite: bool, folder: RunFolder) -> None:
    (folder / "config.json").write_text("mine")
    with pytest.raises(RunError, match="holds no run"):
        folder.claim(RECIPE, overwrite=overwrite)
    assert (folder / "config.json").read_text() == "mine"


def test_texts_are_written_whole_or_not_at_all(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_json("run.json", {"a": "狐"})
    assert json.loads((folder / "run.json").read_text(encoding="utf-8")) == {"a": "狐"}

    def full(self: Path, text: str, encoding: str) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match="No space"):
        folder.write_json("run.json", {"a": 2})
    monkeypatch.undo()
    assert folder.state() == {"a": "狐"}
    assert names(folder) == {"run.json"}


def test_a_saved_model_replaces_the_earlier_one(folder: RunFolder) -> None:
    earlier = ("adapter_config.json", "adapter_model.safetensors", "model.safetensors.index.json", "tokenizer.json")
    for name in (*earlier, "thesis.txt"):
        (folder / name).write_text("old")
    with folder.saving() as place:
        (place / "config.json").write_text("new")
        (place / "model.safetensors").write_text("new")
        assert "config.json" not in names(folder)
    assert names(folder) == {"config.json", "model.safetensors", "tokenizer.json", "thesis.txt"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_model_that_was_not_saved_whole_leaves_nothing(error: type[BaseException], folder: RunFolder) -> None:
    (folder / "model.safetensors").write_text("old")
    with pytest.raises(error), folder.saving() as place:
        (place / "model.safetensors").write_text("half")
        raise error
    assert names(folder) == {"model.safetensors"}
    assert (folder / "model.safetensors").read_text() == "old"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "full"), "No space is left"),
        (OSError(errno.EDQUOT, "quota"), "No space is left"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space is left"),
        (PermissionError(errno.EACCES, "denied"), "cannot be written: denied"),
        (OSError(errno.EROFS, "read-only"), "cannot be written: read-only"),
        (OSError(errno.ENAMETOOLONG, "too long"), "cannot be written: too long"),
        (FileExistsError(errno.EEXIST, "exists"), "cannot be written: exists"),
    ],
)
def test_refusals_of_the_system_say_what_to_do(error: Exception, says: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=says) as found, storage_errors(tmp_path):
        raise error
    assert str(tmp_path) in found.value.problem
    assert found.value.fix


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone"), ValueError("bad"), SafetensorError("bad")])
def test_other_errors_pass(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as found, storage_errors(tmp_path):
        raise error
    assert found.value is error


@pytest.mark.parametrize(("needed", "fits"), [(0, True), (1 << 62, False)])
def test_need_space(needed: int, fits: bool, folder: RunFolder) -> None:
    if fits:
        folder.need_space(needed)
        return
    with pytest.raises(RunError, match="GB free"):
        folder.need_space(needed)
