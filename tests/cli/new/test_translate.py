"""No key disappears, whatever the file holds; and what is written is YAML that says what was meant."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from honed.cli.new.axolotl import AXOLOTL
from honed.cli.new.llamafactory import LLAMAFACTORY
from honed.cli.new.page import page
from honed.cli.new.translate import Draft, Trainer, as_number, translate
from honed.cli.new.trl import TRL
from honed.errors import RecipeError
from honed.recipe import SECTIONS, Recipe, load_recipe
from honed.train.options.config import SFTConfig

TRAINERS = (LLAMAFACTORY, AXOLOTL, TRL)
PLACE = Path("nowhere/theirs.yaml")
ARGUMENTS = sorted(f.name for f in dataclasses.fields(TrainingArguments))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 5000),
    st.floats(0, 2),
    st.sampled_from(["auto", "lora", "full", "qlora", "no", "1e-4", "cosine", "a,b", "owner/rows", "# not a comment"]),
    st.text(max_size=8),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=2),
    st.dictionaries(st.sampled_from(["path", "type", "split", "role", "pad_token", "x"]), SCALARS, max_size=3),
    st.lists(st.fixed_dictionaries({"path": st.just("owner/rows"), "type": st.just("chat_template")}), max_size=2),
)


def names_of(trainer: Trainer) -> list[str]:
    return [name.replace("*", "some") for name in trainer.rules]


def partition(draft: Draft) -> list[str]:
    return sorted([*draft.translated, *draft.passed, *draft.needless, *draft.refused])


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.name)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_each_key_is_in_exactly_one_list(trainer: Trainer, data: st.DataObject) -> None:
    keys = st.sampled_from([*names_of(trainer), *ARGUMENTS]) | st.text("abc_", min_size=1, max_size=5)
    theirs: dict[str, Any] = data.draw(st.dictionaries(keys, VALUES, max_size=8))
    try:
        draft = translate(theirs, trainer, PLACE)
    except RecipeError as error:
        assert str(PLACE) in str(error)
        assert error.fix
        return
    assert partition(draft) == sorted(theirs)
    left_out = page(draft, theirs, of="a file")
    for key in (*draft.needless, *draft.refused):
        assert key in left_out


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.name)
def test_rules_name_keys_that_exist_here(trainer: Trainer) -> None:
    sections = {**SECTIONS, "train": SFTConfig, "": Recipe}
    targets = [rule.to for rule in trainer.rules.values() if rule.to] + [key for key, _ in trainer.defaults]
    for target in targets:
        section, _, name = target.rpartition(".")
        assert name in {f.name for f in dataclasses.fields(sections[section])}, target
    for rule in trainer.rules.values():
        assert not rule.group or rule.group in trainer.groups


@given(value=VALUES.filter(lambda value: value is not None))
@settings(max_examples=60, deadline=None)
def test_values_are_written_as_the_recipe_reads_them(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    draft = Draft(PLACE)
    draft.put("train.some", value, "a comment: # and more")
    file = tmp_path_factory.getbasetemp() / "recipe.yaml"
    file.write_text(page(draft, {}, of="a file"), encoding="utf-8")
    assert load_recipe(file).train["some"] == as_number(value)


def test_a_text_that_is_a_number_is_one() -> None:
    assert [as_number(text) for text in ("1e-4", "5.0e-5", "-1E3")] == [1e-4, 5e-5, -1000.0]
    assert [as_number(text) for text in ("1", "e", "epoch", "2e", "0.9 else")] == ["1", "e", "epoch", "2e", "0.9 else"]


def test_secrets_are_not_repeated() -> None:
    theirs = {"hf_hub_token": "hf_abc", "swanlab_api_key": "xyz", "stage": "dpo", "ref_model_password": "pw"}
    text = page(translate(theirs, LLAMAFACTORY, PLACE), theirs, of="a file")
    assert not [secret for secret in ("hf_abc", "xyz", "pw") if secret in text]
    assert "hf_hub_token: ..." in text
