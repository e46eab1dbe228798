"""A recipe's sources, its held-out share and its streams, from the recipe to the ledger of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from honed.data.read.sources import read_rows
from honed.errors import RecipeError
from honed.recipe import DataRecipe, as_yaml, load_recipe, recipe_from
from honed.train.run.data import run_data
from honed.train.run.run import run, training_arguments

Recipe = dict[str, Any]


@pytest.fixture
def tree(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: Any, monkeypatch: Any
) -> Recipe:
    monkeypatch.setattr("honed.model.load.load.pick_dtype", lambda device: torch.float32)
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({**row, "from": name}) + "\n" for row in chat_rows))
    return {
        "model": str(tmp_path / "tiny"),
        "data": {"files": [str(tmp_path / "a.jsonl")]},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4},
        "output": str(tmp_path / "run"),
    }


def ledger_of(tree: Recipe) -> tuple[dict[str, Any], str]:
    said: list[str] = []
    folder = run(recipe_from(tree), command="honed train", say=said.append).folder
    return json.loads((folder / "ledger.json").read_text()), "\n".join(said)


def test_a_share_is_held_out_and_evaluated(tree: Recipe, tmp_path: Path) -> None:
    ledger, said = ledger_of({**tree, "data": {**tree["data"], "eval_share": 0.25}, "train": {"num_train_epochs": 1}})
    assert (ledger["rows_in"], ledger["evaluation"]["rows_in"]) == (9, 3)
    assert "held out for evaluation: 3 rows" in said and "3 of 12 rows (25.0%) are held out" in said
    assert "eval_loss" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_renamed_columns_are_compared_and_others_are_not(tmp_path: Path) -> None:
    """Each question stands there twice, under ids of its own."""
    lines = [json.dumps({"id": f"{n} " + chr(97 + n % 26) * 40, "q": "a" * (n // 2), "a": "yes"}) for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    columns = {"prompt": "q", "completion": "a"}
    data = DataRecipe(files=(str(tmp_path / "rows.jsonl"),), columns=columns, eval_share=0.2)
    parted = run_data(data, seed=0)
    train, held_out = (
        {row["q"] for part in side.parts for _, row in read_rows(part.data)} for side in (parted.train, parted.held_out)
    )
    assert train and held_out and not train & held_out


def test_weighted_sources_are_mixed(tree: Recipe, tmp_path: Path) -> None:
    sources = [
        {"files": str(tmp_path / "a.jsonl"), "weight": 0.75, "name": "first"},
        {"files": str(tmp_path / "b.jsonl"), "weight": 0.25, "system": "Be brief.", "name": "second"},
    ]
    ledger, said = ledger_of({**tree, "data": {"sources": sources}})
    assert {name: n["rows_trained"] for name, n in ledger["by_source"].items()} == {"first": 12, "second": 4}
    assert ledger["rows_dropped"] == {"left out by weight": 8} and "  second: 4 rows, " in said
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert list(recipe.data.sources or ()) == sources and as_yaml(recipe) == (tmp_path / "run/recipe.yaml").read_text()


def test_a_stream_leaves_its_ledger(tree: Recipe) -> None:
    ledger, said = ledger_of({**tree, "data": {**tree["data"], "streaming": True, "packing": True}})
    assert ledger["rows_in"] == ledger["rows_trained"] >= 12 and f"{ledger['rows_in']} rows in" in said


@pytest.mark.parametrize(
    ("data", "train", "problem"),
    [
        ({"sources": [{"files": "a"}], "files": ["b"]}, {}, "files and data.sources are both set"),
        ({"sources": [{"file": "a"}]}, {}, r"'file' in data\.sources\[1\]"),
        ({"sources": ["a"]}, {}, r"data\.sources is \['a'\].\n.*a list of key: value lines"),
        ({"eval_share": 0.1, "held_out": "b"}, {}, "held_out and data.eval_share are both set"),
        ({"eval_share": 1}, {}, r"eval_share is 1\.0"),
        ({"streaming": True}, {}, "nothing says when to stop"),
        ({"streaming": True, "eval_share": 0.1}, {"max_steps": 5}, "never holds them"),
    ],
)
def test_data_that_cannot_be(data: dict[str, Any], train: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        training_arguments(recipe_from({"data": data, "train": train}))
