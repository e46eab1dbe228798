"""`honed train`: how its arguments become a recipe, and what it shows."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import honed.cli.train.train as verb
from honed.cli.recipe_arguments import divide, find_recipe
from honed.cli.train.dry_run import without_flag
from honed.errors import RecipeError
from honed.recipe import SECTIONS, Recipe, load_recipe


@pytest.fixture
def recipe_of(honed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    """The recipe that a command would run."""

    class Enough(Exception):
        pass

    def call(*arguments: str) -> Recipe:
        taken: list[Recipe] = []

        def run(recipe: Recipe, **_: Any) -> None:
            taken.append(recipe)
            raise Enough

        monkeypatch.setattr("honed.train.run.run.run", run)
        with pytest.raises(Enough):
            honed("train", *arguments)
        return taken[0]

    return call


@pytest.mark.parametrize(
    "text",
    ["with space", "a: b", "a #b", "2024", "null", "it's", "[x]", "a, b", "a=b", "1e5", "~/{x}", "模型", "yes", "- a"],
)
def test_option_values_are_text_whatever_yaml_makes_of_it(text: str, recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("--model", text, "--output", text, "--data", text.replace("=", ""))
    assert (recipe.model, recipe.output, recipe.data.files) == (text, text, (text.replace("=", ""),))


def test_changes_after_data_are_no_files(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    odd = tmp_path / "a=b.jsonl"
    odd.touch()
    recipe = recipe_of("--data", "one.jsonl", str(odd), "learning_rate=0.25", "system=a=b, c")
    assert recipe.data.files == ("one.jsonl", str(odd))
    assert (recipe.train["learning_rate"], recipe.data.system) == (0.25, "a=b, c")


def test_options_win_over_changes_and_changes_over_the_recipe(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("demo", "output=one", "lora.r=4", "--output", "two")
    assert (recipe.output, recipe.lora and recipe.lora.r) == ("two", 4)
    assert recipe.samples == load_recipe(find_recipe("demo")).samples


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], (None, [])),
        (["a=1"], (None, ["a=1"])),
        (["demo", "a=1"], (find_recipe("demo"), ["a=1"])),
    ],
)
def test_divide(items: list[str], expected: tuple[Path | None, list[str]]) -> None:
    assert divide(items) == expected


@pytest.mark.parametrize(("name", "says"), [("nope.yaml", "No such recipe"), ("rows.jsonl", "--data FILE")])
def test_unknown_recipe(name: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        find_recipe(name)


def test_train_shows_data_answers_and_what_next(train: Callable[..., Any], tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "why fox"}\n{"prompt": "为什么？"}\n', encoding="utf-8")
    samples = (f"samples.prompts={questions}", "samples.max_new_tokens=4", "samples.form=.+")
    shown = train(*samples)
    assert shown.status == 0, shown.err
    assert "12 rows in, 12 trained, 0 dropped" in shown.out
    assert "'<|im_end|>' (14)" in shown.out
    assert "Q: why fox" in shown.out
    assert "Q: 为什么？" in shown.out
    assert "followed the form" in shown.out
    assert f"honed chat {tmp_path / 'run'}" in shown.out
    # in a pipe: one plain line a step, no carriage returns, no advice of other libraries
    steps = {line.partition(":")[0] for line in shown.err.splitlines()}
    assert steps == {
        "Answering before",
        "Preparing train data",
        "Training",
        "Answering after",
    }
    assert "\r" not in shown.err


def test_a_dry_run_shows_everything_and_writes_nothing(train: Callable[..., Any], tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if "prepared" not in path.parts}
    shown = train("--dry-run", "per_device_train_batch_size=4", "data.packing_strategy=wrapped")
    assert shown.status == 0, shown.err
    assert {path for path in tmp_path.rglob("*") if "prepared" not in path.parts} == before
    assert shown.out.count("«yes") >= 3  # masks of three rows
    for line in (  # which a long path may break elsewhere
        "run: a new folder",
        "2 optimizer steps of 4 rows; 0.67 epochs of 12 rows",
        "12 rows in, 12 trained, 0 dropped",
        "in the first 1 of 2 steps, then falls as a cosine to 0",
        "packing_strategy has no effect without packing=True.",
    ):
        assert line in " ".join(shown.out.split())
    assert "data.packing_strategy=wrapped  " in shown.out
    assert re.search(r"^memory +about [\d.]+ GB at the peak on cpu: the longest micro", shown.out, flags=re.MULTILINE)
    assert re.search(r"^time +about [\d.]+ s, [\d.]+ m?s a step, if 40% of [\d.]+ T", shown.out, flags=re.MULTILINE)
    command = shown.out.rstrip().splitlines()[-1]
    assert command.startswith("  honed train --model ")
    assert "--dry" not in command


def test_what_decides_comes_before_the_rows_and_long_rows_are_cut(train: Callable[..., Any], tmp_path: Path) -> None:
    rows = tmp_path / "long.jsonl"
    answer = "quick brown fox " * 200
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}]
    rows.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    shown = train("--dry-run", "data.max_length=8192", data=rows)
    assert shown.status == 0, shown.err
    lines = shown.out.splitlines()
    starts = [
        next(n for n, line in enumerate(lines) if line.startswith(name)) for name in ("model", "data", "The first")
    ]
    assert starts == sorted(starts) and starts[-1] < 25 and len(lines) < 50
    assert "The first 1 row as" in shown.out and "characters ...]" in shown.out and "1 epochs" not in shown.out
    assert max(map(len, lines[: starts[-1]])) <= 120


@pytest.mark.parametrize("there", ["finished", "files", "file"])
def test_a_dry_run_tells_what_training_would_refuse(there: str, train: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if there == "file":
        folder.touch()
    else:
        folder.mkdir()
        (folder / "run.json").write_text('{"status": "finished"}' if there == "finished" else "none")
    dry, real = train("--dry-run"), train()
    assert dry.status == real.status == 2
    assert dry.out.startswith("would stop     ") and "Training would be refused: " in dry.out
    if there == "finished":
        assert train("--dry-run", "--overwrite").status == 0


def test_the_whole_recipe_is_shown_and_read_back(
    honed: Callable[..., Any], recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    shown = honed("train", "demo", "max_steps=2", "--show-recipe")
    file.write_text(shown.out, encoding="utf-8")
    assert shown.status == 0 and load_recipe(file) == recipe_of("demo", "max_steps=2")


def test_a_dry_run_of_what_cannot_be_ends_with_2(train: Callable[..., Any], tmp_path: Path) -> None:
    shown = train("--dry-run", data=tmp_path / "nowhere.jsonl")
    assert shown.status == 2
    assert "nowhere.jsonl" in shown.err


@pytest.mark.parametrize("flag", ["--dry-run", "--dry", "--d"])
def test_the_command_without_its_flag(flag: str) -> None:
    assert without_flag(f"honed train {flag} 'a b=c' --data x") == "honed train 'a b=c' --data x"


def test_the_short_help_names_keys_that_exist() -> None:
    keys = [
        key for line in (verb.__doc__ or "").splitlines() for key in re.findall(r"(?:data|lora|samples)\.\w+", line)
    ]
    assert len(set(keys)) > 25
    for key in set(keys) - {"lora.yaml"}:
        section, name = key.split(".")
        assert name in {f.name for f in dataclasses.fields(SECTIONS[section])}, key


def test_the_short_help_names_every_packaged_recipe() -> None:
    packaged = {path.stem for path in find_recipe("demo").parent.glob("*.yaml")}
    [line] = [line for line in (verb.__doc__ or "").splitlines() if line.startswith("Recipes that come")]
    assert set(line.partition(": ")[2].rstrip(".").split(", ")) == packaged


def test_the_long_help_names_every_key(honed: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    from honed.train.options.config import SFTConfig

    with pytest.raises(SystemExit) as left:
        honed("train", "--help-all")
    assert left.value.code == 0
    shown = capsys.readouterr().out
    of_data = {f.name for f in dataclasses.fields(SECTIONS["data"])}
    for section, kind in SECTIONS.items():
        for field in dataclasses.fields(kind):
            assert re.search(rf"^  {section}\.{field.name} +\S", shown, flags=re.MULTILINE), field.name
    for field in dataclasses.fields(SFTConfig):
        assert field.name in of_data or re.search(rf"\b{field.name}\b", shown), field.name
    assert all(len(line) <= 118 for line in shown.splitlines())


@pytest.mark.parametrize(
    ("row", "changes", "says"),
    [
        ({"text": "why fox"}, (), "trains plain text in full, max_length 64, overlong drop"),
        (
            {"text": "why fox"},
            ("packing=true", "packing_strategy=wrapped"),
            "trains plain text in full, rows of 64",
        ),
        ({"text": "why fox"}, ("packing=true", "packing_strategy=bfd_split"), "max_length 64, overlong split"),
        ({"input_ids": [3, 4, 5]}, (), "trains token rows by their own labels, max_length 64"),
        ({"prompt": "why", "completion": "fox"}, ("train_on=last",), "trains last, max_length 64"),
    ],
)
def test_a_dry_run_says_what_the_options_mean_for_these_rows(
    row: dict[str, Any], changes: tuple[str, ...], says: str, train: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(row) + "\n")
    shown = train("--dry-run", "max_length=64", *changes, data=file)
    assert says in " ".join(shown.out.split()), shown.err


@pytest.mark.parametrize("key", ["use_cpu", "bf16", "packing", "train.assistant_only_loss"])
def test_quoted_booleans_are_not_taken_as_true(key: str, train: Callable[..., Any]) -> None:
    shown = train(f"{key}='false'")
    assert shown.status == 2
    assert "is 'false'.\n  fix: it takes true or false" in shown.err
