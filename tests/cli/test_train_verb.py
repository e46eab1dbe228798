"""`honed train`: how its arguments become a recipe, and what it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from honed.cli.train import divide, find_recipe
from honed.errors import RecipeError
from honed.recipe import Recipe, load_recipe


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

        monkeypatch.setattr("honed.train.run.run", run)
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
    assert steps == {"Answering before", "Preparing train data", "Training", "Answering after"}
    assert "\r" not in shown.err
