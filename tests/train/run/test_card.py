"""The card of a run says what it is to others, in a form that the Hub's own reader takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from honed.data.ledger import Ledger
from honed.recipe import LoraRecipe, Recipe
from honed.train.run.card import card, hub_id


@pytest.mark.parametrize("lora", [None, LoraRecipe()])
def test_the_hub_reads_it(lora: LoraRecipe | None) -> None:
    recipe = Recipe(model="Qwen/Qwen3-0.6B", lora=lora, output="/home/me/runs/mine")
    ledger = Ledger(rows_in=3, rows_trained=2, rows_dropped=Counter(overlong=1), tokens=70, trained_tokens=30)
    read = ModelCard(card(recipe, ledger))
    assert read.data.base_model == "Qwen/Qwen3-0.6B"
    assert read.data.library_name == ("peft" if lora else "transformers")
    assert {"sft", "honed"} <= set(read.data.tags) and ("lora" in read.data.tags) == (lora is not None)
    assert "# mine" in read.text and "70 tokens of 2 rows, 30 of them" in read.text
    assert "/home/me" not in str(read)


def test_no_folder_of_this_machine_is_named(tmp_path: Path) -> None:
    recipe = Recipe(model=str(tmp_path), output=str(tmp_path / "run"))
    for made in (card(recipe, None), card(replace(recipe, model="~/models/mine"), None)):
        assert "base_model" not in made and str(tmp_path) not in made and "~" not in made


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("owner/name", "owner/name"),
        ("./name", None),
        ("../name", None),
        ("a/b/c", None),
        ("name", None),
    ],
)
def test_names(model: str, found: str | None) -> None:
    assert hub_id(model) == found
