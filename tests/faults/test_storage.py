"""Disks that are full, closed, changed by others, or that lie."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_tools import Shown, assert_mendable

from honed.errors import HonedError, RunError
from honed.train.run_folder.folder import RunFolder


def on_first_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, do: Callable[[], None]) -> None:
    """Does something when a method is first called, and then what it always does."""
    real, calls = getattr(owner, name), []

    def called(*args: Any, **kwargs: Any) -> Any:
        if not calls:
            calls.append(1)
            do()
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, called)


def fill(disk: Path) -> None:
    with pytest.raises(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * (1 << 16))


@pytest.mark.parametrize("stage", ["training_step", "_save_checkpoint", "save_model"])
def test_the_disk_fills_up(
    stage: str, train: Callable[..., Shown], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    on_first_call(monkeypatch, Trainer, stage, lambda: fill(small_disk))
    place = small_disk / "run"
    shown = train("save_strategy=steps", "save_steps=1", "--output", str(place))
    assert_mendable(shown, "No space is left", str(place))
    assert not (place / "adapter_model.safetensors").exists()

    (small_disk / "ballast").unlink()
    again = train("--output", str(place))
    assert again.status == 0, again.err


def test_the_disk_fills_up_beside_the_cache(
    train: Callable[..., Shown], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from honed.cache import cache_folder
    from honed.data.prepare import cache as prepared_cache

    monkeypatch.setattr(prepared_cache, "cache_folder", lambda kind, root=None: cache_folder(kind, root=small_disk))
    cache_folder("prepared", root=small_disk)
    fill(small_disk)
    assert_mendable(train(), "No space is left", "HONED_CACHE")
    assert not list((small_disk / "prepared").glob(".work-*"))


@pytest.mark.parametrize("limit", [2_000, 30_000])
def test_files_may_not_grow(limit: int, train: Callable[..., Shown], run: Path) -> None:
    """As a quota would, for whoever cannot mount a file system."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        shown = train("data.cache=false")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_mendable(shown)
    assert not (run / "adapter_model.safetensors").exists()
    assert train().status == 0


def test_a_read_only_output(as_nobody: Path) -> None:
    with pytest.raises(RunError, match="cannot be written: Permission denied"):
        RunFolder(as_nobody / "run")


def test_a_read_only_cache(as_nobody: Path, tiny_tokenizer: Any) -> None:
    from honed.data.prepare.cache import prepare_cached
    from honed.data.prepare.options import PrepareOptions
    from honed.data.read.sources import starter_file

    with pytest.raises(HonedError, match="Permission denied"):
        prepare_cached(str(starter_file("train.jsonl")), tiny_tokenizer, PrepareOptions(), root=as_nobody / "cache")


def test_the_data_change_under_a_run(
    train: Callable[..., Shown], rows_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    assert train().status == 0
    assert json.loads((run / "run.json").read_text())["data_changed"] == []

    on_first_call(monkeypatch, Trainer, "training_step", lambda: rows_file.write_text(rows_file.read_text() + "\n"))
    shown = train("--overwrite")
    assert shown.status == 0
    assert f"note: {rows_file} was changed while this run used it" in shown.out
    assert json.loads((run / "run.json").read_text())["data_changed"] == [str(rows_file)]


def test_a_stream_whose_file_is_cut_short(
    train: Callable[..., Shown], rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    text = rows_file.read_text()
    rows_file.write_text(text * 40)
    on_first_call(monkeypatch, Trainer, "training_step", lambda: os.truncate(rows_file, len(text) + 30))
    shown = train("data.streaming=true", "per_device_train_batch_size=12", "max_steps=60")
    assert_mendable(shown, "rows.jsonl:13")


def test_prepared_data_that_lie_are_made_again(
    tmp_path: Path, rows_file: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte of another value, the size as before."""
    from honed.data.prepare.cache import prepare_cached
    from honed.data.prepare.options import PrepareOptions

    def ids() -> list[int]:
        prepared = prepare_cached(str(rows_file), tiny_tokenizer, PrepareOptions(), root=tmp_path / "cache")
        return prepared.rows.table.input_ids.tolist()

    first = ids()
    [stored] = (tmp_path / "cache" / "prepared").glob("*/input_ids.npy")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    assert ids() == first


@pytest.mark.parametrize("fault", ["cut", "gone", "not of its kind"])
def test_a_model_with_a_bad_shard(
    fault: str, train: Callable[..., Shown], model_folder: Path, tiny_model: Callable[..., Any]
) -> None:
    (model_folder / "model.safetensors").unlink()
    tiny_model().save_pretrained(model_folder, max_shard_size="40KB")
    shards = sorted(model_folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    if fault == "gone":
        shards[-1].unlink()
    elif fault == "cut":
        shards[-1].write_bytes(shards[-1].read_bytes()[:-100])
    else:
        shards[-1].write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert_mendable(train(), "could not be loaded")


@pytest.mark.parametrize("depth", [1, 14])
def test_long_paths(depth: int, train: Callable[..., Shown], tmp_path: Path) -> None:
    place = tmp_path.joinpath(*["x" * 200] * depth)
    assert train("--output", str(place)).status == 0
    assert (place / "report.html").exists()
