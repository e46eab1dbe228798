"""What a user can mend ends with status 2 and one screen that says what was found and how to mend it."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCREEN = 25  # lines of 80 columns

Usage = namedtuple("Usage", "total used free")


def assert_mendable(shown: Any, *says: str) -> None:
    lines = sum(max(1, -(-len(line) // 80)) for line in shown.err.splitlines())
    assert shown.status == 2, shown
    assert lines < SCREEN, shown.err
    assert "fix: " in shown.err
    assert "Traceback" not in shown.err
    for text in says:
        assert text in shown.err


GOOD = json.dumps({"prompt": "a", "completion": "b"}).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, ("rows.jsonl does not exist",)),
        (b"", ("rows.jsonl is empty",)),
        (b"\n \n", ("holds no rows",)),
        (GOOD + bytes(range(128, 256)), ("rows.jsonl:2", "UTF-8")),
        (b"\x1f\x8b\x08\x00\x00\x00", ("rows.jsonl:1", "UTF-8")),
        (GOOD + b"{'prompt': 1}\n", ("rows.jsonl:2", "not JSON")),
        (b'{"q": "a", "w": "b"}\n', ("rows.jsonl:1", "keys seen: q, w", "messages", "alpaca", "prompt_completion")),
        (GOOD + b'{"prompt": "a", "completion": " "}\n', ("rows.jsonl:2", "empty answer")),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}\n',
            ("rows.jsonl:1", "empty answer"),
        ),
        (b'{"messages": [{"role": "user", "content": "a"}]}\n', ("rows.jsonl:1", "nothing to train")),
        (b'{"messages": [{"role": "wizard", "content": "a"}]}\n', ("rows.jsonl:1", "wizard", "assistant")),
        (b"[1, 2]\n", ("rows.jsonl:1", "not an object")),
    ],
    ids=lambda value: None if isinstance(value, tuple) else str(value)[:24],
)
def test_data(content: bytes | None, says: tuple[str, ...], train: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_bytes(content)
    assert_mendable(train(data=file), *says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("data.max_lenght=5", ("data.max_lenght", "'max_length'")),
        ("lora.rank=5", ("lora.rank", "did you mean 'lora.r'?")),
        ("lora.zzz=5", ("lora.zzz", "alpha, alpha_pattern, dropout, init")),
        ("modle.x=5", ("modle.x", "'model'")),
        ("learnign_rate=1", ("learnign_rate", "'learning_rate'")),
        ("foo=1", ("Unknown key foo", "TrainingArguments")),
        ("nothing", ("'nothing' is not key=value",)),
        ("data.format=shareGTP", ("shareGTP", "sharegpt")),
        ("dtype=float99", ("dtype is 'float99'", "bfloat16")),
        ("learning_rate=abc", ("learning_rate is 'abc'", "it takes a number")),
        ("max_steps=1.5", ("max_steps is 1.5", "it takes a whole number")),
        ("bf16=maybe", ("bf16 is 'maybe'", "it takes true or false or null")),
        ("per_device_train_batch_size=0", ("per_device_train_batch_size is 0",)),
        ("gradient_accumulation_steps=0", ("gradient_accumulation_steps is 0",)),
        ("seed=-1", ("seed is -1",)),
        ("optim=bogus", ("bogus", "adamw_torch")),
        ("eval_strategy=epoch", ("eval_strategy", "data.held_out")),
        ("resume_from_checkpoint=nope", ("nope", "checkpoint-N")),
        ("lora.r=0", ("`r`", "check r")),
        ("lora.target_modules=nope", ("nope", "target_modules")),
        ("data.max_length=1", ("max_length is 1",)),
        ("data.template=nope.jinja", ("nope.jinja", "plain")),
        ("data.held_out=nope.jsonl", ("nope.jsonl does not exist",)),
        ("samples.form=(", ("samples.form", "'('")),
        ("samples.prompts=nope.jsonl", ("nope.jsonl does not exist",)),
        ("samples.max_new_tokens=0", ("samples.max_new_tokens is 0",)),
    ],
)
def test_changes(change: str, says: tuple[str, ...], train: Callable[..., Any]) -> None:
    assert_mendable(train(change), *says)


def no_model(folder: Path) -> None:
    shutil.rmtree(folder)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def garbled_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nonesuch"}')


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_model, ("No such model folder", "tiny")),
        (no_config, ("no config.json",)),
        (garbled_config, ("not a valid JSON",)),
        (unknown_architecture, ("nonesuch",)),
        (no_tokenizer, ("No tokenizer", "tokenizer.json")),
        (truncated, ("could not be loaded", "SafetensorError")),
        (no_weights, ("could not be loaded", "model.safetensors")),
        (no_template, ("chat template", "data.template")),
        (adapter, ("The adapter in", "cannot be read", "restore")),
    ],
)
def test_models(
    spoil: Callable[[Path], None], says: tuple[str, ...], train: Callable[..., Any], model_folder: Path
) -> None:
    spoil(model_folder)
    shown = train()
    assert_mendable(shown, *says)


def test_samples_need_a_template(train: Callable[..., Any], model_folder: Path) -> None:
    no_template(model_folder)
    assert_mendable(train("samples.prompts=starter"), "has no chat template", "data.template=plain")


def file_in_the_way(run: Path) -> None:
    run.write_text("mine")


def foreign_files(run: Path) -> None:
    run.mkdir()
    (run / "thesis.txt").write_text("mine")


def finished(run: Path) -> None:
    run.mkdir()
    (run / "run.json").write_text('{"status": "finished"}')


def read_only(run: Path) -> None:
    run.mkdir(mode=0o500)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (file_in_the_way, ("cannot be written", "output=")),
        (foreign_files, ("not empty and holds no run", "output=")),
        (finished, ("finished run of another recipe", "--overwrite")),
        pytest.param(
            read_only,
            ("cannot be written", "output="),
            marks=pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere"),
        ),
    ],
)
def test_outputs(
    prepare: Callable[[Path], None], says: tuple[str, ...], train: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    prepare(run)
    before = {file: file.read_bytes() for file in tmp_path.rglob("run*/*") if file.is_file()}
    assert_mendable(train(), *says)
    assert {file: file.read_bytes() for file in tmp_path.rglob("run*/*") if file.is_file()} == before


def test_overwrite_does_not_reach_files_that_no_run_made(train: Callable[..., Any], tmp_path: Path) -> None:
    foreign_files(tmp_path / "run")
    assert_mendable(train("--overwrite"), "not empty and holds no run")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("output", ["tiny", "x" * 300, "tiny/config.json/run"])
def test_impossible_outputs(output: str, honed: Callable[..., Any], model_folder: Path, rows_file: Path) -> None:
    before = sorted(model_folder.iterdir())
    into = model_folder.parent / output
    assert_mendable(honed("train", "--model", model_folder, "--data", rows_file, "--output", into, "--overwrite"))
    assert sorted(model_folder.iterdir()) == before


def test_full_disk_is_told_before_training(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("honed.train.run_folder.folder.shutil.disk_usage", lambda _: Usage(1000, 999, 1))
    assert_mendable(train(), "GB free", "free some space")
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


@pytest.fixture
def trained(train: Callable[..., Any], tmp_path: Path) -> Path:
    """The folder of a finished run."""
    assert train().status == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("adapter_model.safetensors", b"\0" * 20, "SafetensorError"),
        ("adapter_config.json", b"{", "JSONDecodeError"),
        ("adapter_config.json", b'{"peft_type": "LORA", "base_model_name_or_path": "/gone"}', "/gone"),
    ],
)
def test_adapters(file: str, content: bytes, says: str, trained: Path, honed: Callable[..., Any]) -> None:
    (trained / file).write_bytes(content)
    assert_mendable(honed("generate", trained, "why"), says)


@pytest.mark.parametrize("name", ["./nope", "owner/nope"])
def test_generate_from_no_model(name: str, honed: Callable[..., Any]) -> None:
    assert_mendable(honed("generate", name, "why"), name)


def test_a_template_that_refuses_the_system_prompt(honed: Callable[..., Any], model_folder: Path) -> None:
    template = model_folder / "chat_template.jinja"
    refusal = "{%- if messages[0]['role'] == 'system' %}{{- raise_exception('no system here') }}{%- endif %}"
    template.write_text(refusal + template.read_text())
    shown = honed("generate", model_folder, "why", "--system", "be short")
    assert_mendable(shown, "no system here", "leave out the system prompt")


@pytest.mark.parametrize("verb", ["train", "chat", "prove"])
def test_a_folder_without_a_model_names_the_one_inside(
    verb: str, honed: Callable[..., Any], model_folder: Path, rows_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "unfinished"
    run.mkdir()
    (run / "run.json").write_text('{"status": "interrupted"}')
    ask = ("chat", run) if verb == "chat" else (verb, "--model", run, "--data", rows_file)
    assert_mendable(honed(*ask), "holds no model", "train it to its end")
    shutil.copytree(model_folder, run / "checkpoint-2")
    assert_mendable(honed(*ask), "holds no model", "such as", "checkpoint-2")


def test_a_device_that_is_not_here(honed: Callable[..., Any], model_folder: Path, rows_file: Path) -> None:
    for name in ("xpu:9", "gpu"):
        shown = honed("prove", "--model", model_folder, "--data", rows_file, "--device", name)
        assert_mendable(shown, f"device '{name}' cannot be used here")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no place here that nobody can write to, root included")
def test_places_that_cannot_be_written(honed: Callable[..., Any], train: Callable[..., Any], tmp_path: Path) -> None:
    assert_mendable(train("--output", "/proc/honed"), "/proc/honed", "output=FOLDER")
    assert train().status == 0
    assert_mendable(honed("export", tmp_path / "run", "/proc/honed"), "/proc/honed", "another folder")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "--modle", "x"), "did you mean --model?"),
        (("train", "--dryrun"), "did you mean --dry-run?"),
        (("doctor", "--jsn"), "did you mean --json?"),
        (("demo", "--zzz"), "keys are written without dashes: zzz=..."),
        (("train", "--learning-rate=1e-4"), "keys are written without dashes: learning_rate=1e-4"),
        (("train", "--epochs", "3"), "keys are written without dashes: num_train_epochs=..."),
        (("doctor", "--zzz"), "honed doctor --help"),
    ],
)
def test_an_unknown_option(
    arguments: tuple[str, ...], says: str, honed: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        honed(*arguments)
    shown = capsys.readouterr().err
    assert left.value.code == 2 and says in shown and f"usage: honed {arguments[0]}" in shown
