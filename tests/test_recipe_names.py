"""The names that other trainers give to a recipe's keys lead to keys that exist, and none of them is a key itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from honed import SFTConfig
from honed.cli.new import axolotl, llamafactory, llamafactory_v1, trl
from honed.cli.new.translate import Rule
from honed.errors import RecipeError
from honed.recipe import SECTIONS, Recipe, load_recipe
from honed.recipe_names import OTHER_NAMES, key_called


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_every_name_leads_to_a_key_and_is_none_itself() -> None:
    below = {section: names(kind) for section, kind in SECTIONS.items()}
    dotted = {f"{section}.{name}" for section, found in below.items() for name in found}
    assert set(OTHER_NAMES.values()) <= names(SFTConfig) | names(Recipe) | dotted
    assert not OTHER_NAMES.keys() & (names(SFTConfig) | names(Recipe)).union(*below.values())


@pytest.mark.parametrize("trainer", [axolotl, llamafactory, llamafactory_v1, trl], ids=lambda module: module.NAME)
def test_names_mean_what_the_translation_of_that_trainer_says(trainer: object) -> None:
    rules: Mapping[str, Rule] = getattr(trainer, "RULES")  # noqa: B009
    both = {name: rule.to for name, rule in rules.items() if rule.to and name in OTHER_NAMES}
    assert both == {
        name: key if "." in (key := OTHER_NAMES[name]) or key == "model" else f"train.{key}" for name in both
    }


@pytest.mark.parametrize(
    ("name", "key"),
    [("lr", "learning_rate"), ("lora.rank", "lora.r"), ("Batch-Size", "per_device_train_batch_size"), ("zzz", None)],
)
def test_key_called(name: str, key: str | None) -> None:
    assert key_called(name) == key


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("lr: 1", "train.learning_rate"),
        ("train: {lr: 1}", "learning_rate"),
        ("learning_rate: 1", "train.learning_rate"),
        ("lora: {rank: 1}", "lora.r"),
        ("cutoff_len: 1", "data.max_length"),
        ("base_model: x", "model"),
    ],
)
def test_a_recipe_with_such_a_name(tmp_path: Path, text: str, meant: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=rf"Unknown key .*\n  fix: did you mean '{meant}'\?"):
        load_recipe(path)


@pytest.mark.parametrize("name", sorted(OTHER_NAMES))
def test_a_change_with_such_a_name_is_refused_before_anything_is_loaded(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"Unknown key {name}\.\n  fix: did you mean '{OTHER_NAMES[name]}'\?"):
        load_recipe(changes=[f"{name}=1"])
