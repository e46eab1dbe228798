"""Recipes: YAML and key=value pairs in, frozen dataclasses out, and errors that say what was meant."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from honed.errors import RecipeError
from honed.recipe import (
    TRAIN_DEFAULTS,
    DataRecipe,
    LoraRecipe,
    Recipe,
    SamplesRecipe,
    as_yaml,
    load_recipe,
    recipe_from,
)


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults() -> None:
    assert load_recipe() == recipe_from({}) == Recipe()
    assert Recipe().train == TRAIN_DEFAULTS
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().model = "other"  # type: ignore[misc]


def test_file_and_changes(tmp_path: Path) -> None:
    path = written(tmp_path, "model: mine\ndata: {files: a.jsonl, max_length: 64}\nlora: null\ntrain:\n  seed: 3\n")
    recipe = load_recipe(path, ["max_length=128", "learning_rate=1e-4", "model=yours"])
    assert recipe.model == "yours"
    assert recipe.data == DataRecipe(files=("a.jsonl",), max_length=128)
    assert recipe.lora is None
    assert recipe.train == {**TRAIN_DEFAULTS, "seed": 3, "learning_rate": 1e-4}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["data=a.jsonl"], Recipe(data=DataRecipe(files=("a.jsonl",)))),
        (["data=[a, b]", "packing=true"], Recipe(data=DataRecipe(files=("a", "b"), packing=True))),
        (["data=a.jsonl", "data.system=It's me"], Recipe(data=DataRecipe(files=("a.jsonl",), system="It's me"))),
        (["system=C # and C++"], Recipe(data=DataRecipe(system="C # and C++"))),
        (["system='2'"], Recipe(data=DataRecipe(system="2"))),
        (["max_length=null"], Recipe(data=DataRecipe(max_length=None))),
        (["max_length="], Recipe(data=DataRecipe(max_length=None))),
        (["save_strategy=no"], Recipe(train={**TRAIN_DEFAULTS, "save_strategy": "no"})),
        (["data.workers=3", "share_prefixes=auto"], Recipe(data=DataRecipe(workers=3, share_prefixes="auto"))),
        (["r=8"], Recipe(lora=LoraRecipe(r=8))),
        (["lora=null", "lora.r=8"], Recipe(lora=LoraRecipe(r=8))),
        (["lora=null"], Recipe(lora=None)),
        (["dropout=0"], Recipe(lora=LoraRecipe(dropout=0.0))),
        (["target_modules=[q_proj, v_proj]"], Recipe(lora=LoraRecipe(target_modules=("q_proj", "v_proj")))),
        (["form='\\d+: .*'"], Recipe(samples=SamplesRecipe(form="\\d+: .*"))),
        (["data.template_arguments.enable_thinking=false"],
         Recipe(data=DataRecipe(template_arguments={"enable_thinking": False}))),
        (["weight_decay=2e-4"], Recipe(train={**TRAIN_DEFAULTS, "weight_decay": 0.0002})),
        (["train.optim=sgd"], Recipe(train={**TRAIN_DEFAULTS, "optim": "sgd"})),
    ],
)  # fmt: skip
def test_changes(changes: list[str], expected: Recipe) -> None:
    assert load_recipe(changes=changes) == expected


@pytest.mark.parametrize("text", ["2e-4", "+1E5", "-.5e3", "1.e-10"])
def test_numbers_with_an_exponent_are_numbers(tmp_path: Path, text: str) -> None:
    assert load_recipe(written(tmp_path, f"train: {{x: {text}}}")).train["x"] == float(text)
    assert load_recipe(changes=[f"x={text}"]).train["x"] == float(text)
    assert load_recipe(written(tmp_path, f"train: {{x: '{text}'}}")).train["x"] == text


@pytest.mark.parametrize(
    ("changes", "problem", "fix"),
    [
        (["data.max_lenght=5"], "Unknown key data.max_lenght.", "did you mean 'max_length'?"),
        (["dat.files=a"], "Unknown key 'dat.files'.", "did you mean 'data.files'?"),
        (["dat.zzz=a"], "Unknown key 'dat.zzz'.", "did you mean 'data'?"),
        (["data.learning_rate=1"], "Unknown key data.learning_rate.", "did you mean 'train.learning_rate'?"),
        (["lora.max_length=1"], "Unknown key lora.max_length.", "did you mean 'data.max_length'?"),
        (
            ["lora.zzz=a"],
            "Unknown key lora.zzz.",
            "known keys: alpha, alpha_pattern, dropout, init, modules_to_save, r, rank_pattern, target_modules, "
            "target_parameters, use_dora, use_rslora",
        ),
        (["max_length=long"], "data.max_length is 'long'.", "it takes a whole number or null"),
        (["max_length=1.5"], "data.max_length is 1.5.", "it takes a whole number or null"),
        (["r=true"], "lora.r is True.", "it takes a whole number"),
        (["packing=1"], "data.packing is 1.", "it takes true or false"),
        (["dropout=x"], "lora.dropout is 'x'.", "it takes a number"),
        (["data=5"], "data must hold key: value lines, found 5.", "see `honed train --help`"),
        (["files=[1]"], "data.files is [1].", "it takes a list of texts"),
        (["data.template_arguments=x"], "data.template_arguments is 'x'.", "it takes key: value lines"),
        (["target_modules=5"], "lora.target_modules is 5.", "it takes text or a list of texts or null"),
        (["model="], "model is None.", "it takes text"),
        (["model=a", "model.b=c"], "model.b cannot be set: model is 'a'.", "set model to key: value lines"),
        (["lora=true", "r=8"], "r cannot be set: lora is True.", "set lora to key: value lines"),
        (["train=5"], "train must hold key: value lines, found 5.", "indent the keys below `train:`"),
        (["learning_rate"], "'learning_rate' is not key=value.", "write, for example, learning_rate=1e-4"),
        (["=5"], "'=5' is not key=value.", "write, for example, learning_rate=1e-4"),
    ],
)
def test_changes_that_cannot_be(changes: list[str], problem: str, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(changes=changes)
    assert (caught.value.problem, caught.value.fix) == (problem, fix)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"model: [", "is not valid YAML"),
        (b"train:\n  max_steps: 2\n  seed: 1\n  max_steps: 3", "found the key 'max_steps' twice\n.*line 4"),
        (b"- a", "holds no recipe"),
        (b"", "holds no recipe"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"modle: x", "Unknown key modle"),
        (b"1: x", "Unknown key 1"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=problem):
        load_recipe(path)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / name)


# U+0085 is left out: PyYAML writes this line end as it is and reads it back as a space
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x85"), max_size=12)
texts |= st.sampled_from(["2e-4", "null", "yes", "1:20", "# no", "答案", " a\r\n", "2024-01-01"])
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
datas = st.builds(
    DataRecipe,
    files=st.lists(texts, min_size=1, max_size=3).map(tuple),
    template_arguments=st.dictionaries(texts, plain | st.lists(plain, max_size=2), max_size=2),
    system=st.none() | texts,
    max_length=st.none() | st.integers(),
    packing=st.booleans(),
)
loras = st.builds(
    LoraRecipe, r=st.integers(), dropout=st.floats(allow_nan=False), target_modules=texts | st.just(("q_proj", "2e-4"))
)
trains = st.dictionaries(texts, plain, max_size=3).map(lambda train: {**TRAIN_DEFAULTS, **train})
recipes = st.builds(Recipe, model=texts, dtype=st.none() | texts, data=datas, lora=st.none() | loras, train=trains)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(recipe=recipes)
@example(recipe=Recipe(data=DataRecipe(system="2e-4")))
def test_yaml_round_trip(tmp_path_factory: Any, recipe: Recipe) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(as_yaml(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_yaml_is_for_people() -> None:
    text = as_yaml(Recipe(data=DataRecipe(system="你好")))
    assert "system: 你好" in text
    assert list(yaml.safe_load(text)) == [field.name for field in dataclasses.fields(Recipe)]


def test_a_tree_is_left_as_it_was() -> None:
    tree: dict[str, Any] = {"data": "a.jsonl", "train": {"seed": 1}}
    recipe_from(tree)
    assert tree == {"data": "a.jsonl", "train": {"seed": 1}}
