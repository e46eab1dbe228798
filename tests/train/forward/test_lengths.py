"""By default rows are no longer than tokenizer and model take, whichever engine trains, and whoever tells before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from honed.cli.main import main
from honed.data.prepare.options import DEFAULT_MAX_LENGTH, PrepareOptions
from honed.errors import RecipeError
from honed.recipe import DataRecipe, Recipe, load_recipe
from honed.train.forward.lengths import fit_length, learned_positions
from honed.train.options.config import SFTConfig
from honed.train.run.dry_run import dry_run
from honed.train.run.run import run


@pytest.fixture
def recipe_of(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., Recipe]:
    """A recipe on a tiny model, whose tokenizer takes 512 tokens, and three texts; one of them is longer."""
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    rows = [{"text": "why " * count} for count in (3, 40, 1200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(*changes: str, **shape: Any) -> Recipe:
        tiny_model(shape.pop("family", "llama"), **shape).save_pretrained(tmp_path / "tiny")
        given = [f"model={tmp_path / 'tiny'}", f"data.files={tmp_path / 'rows.jsonl'}", f"output={tmp_path / 'run'}"]
        return load_recipe(None, [*given, "use_cpu=true", "max_steps=1", "samples.prompts=null", *changes])

    return make


def tokens_of_the_short_rows(tokenizer: Any) -> int:
    """The third row is longer than any limit here."""
    return sum(len(tokenizer("why " * count)["input_ids"]) + 1 for count in (3, 40))  # and EOS


def checked_by_the_command_line(recipe: Recipe, capsys: Any) -> dict[str, Any]:
    """What `honed data check --json` says of the recipe's rows."""
    given = [*recipe.data.files, f"max_length={recipe.data.max_length}", f"overlong={recipe.data.overlong}"]
    capsys.readouterr()
    assert main(["data", "check", *given, "--model", recipe.model, "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


@pytest.mark.parametrize("limits", [("1024", 512), ("700", 700), ("100", 100)])
@pytest.mark.parametrize("engine", ["plain", "trainer"])
def test_both_engines_the_dry_run_and_the_check_take_the_same(
    engine: str, limits: tuple[str, int], recipe_of: Callable[..., Recipe], tiny_tokenizer: Any, capsys: Any
) -> None:
    length, longest = limits
    short = tokens_of_the_short_rows(tiny_tokenizer)
    recipe = recipe_of(f"engine={engine}", f"max_length={length}", "data.overlong=truncate")
    planned, told = dry_run(recipe), list[str]()
    checked = checked_by_the_command_line(recipe, capsys)
    run(recipe, command="", say=told.append)
    trained = json.loads((Path(recipe.output) / "ledger.json").read_text())["tokens"]
    assert planned.ledger is not None
    assert [trained, planned.ledger.tokens, checked["ledger"]["tokens"]] == [short + longest] * 3
    notes = [[note for note in notes if "max_length is" in note] for notes in (told, planned.notes, checked["notes"])]
    assert [len(found) for found in notes] == [length == "1024"] * 3


def test_the_memory_told_is_that_of_the_lowered_length(recipe_of: Callable[..., Recipe]) -> None:
    default, chosen = (dry_run(recipe_of(f"max_length={length}")).memory for length in (1024, 512))
    assert default == chosen is not None


@pytest.mark.parametrize(("family", "extra"), [("gpt2", {}), ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32})])
def test_positions_are_counted_as_the_model_itself_does(
    family: str, extra: dict[str, int], tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model(family, max_position_embeddings=16, **extra)
    limit = learned_positions(model)
    assert limit == 16
    model(torch.ones((1, limit), dtype=torch.int64))
    with pytest.raises(IndexError):
        model(torch.ones((1, limit + 1), dtype=torch.int64))
    assert learned_positions(tiny_model("llama", max_position_embeddings=16)) is None


@pytest.mark.parametrize("engine", ["plain", "trainer"])
def test_rows_fit_into_learned_positions(
    engine: str, recipe_of: Callable[..., Recipe], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(f"engine={engine}", "lora=null", "data.overlong=truncate", family="gpt2",
                       max_position_embeddings=64)  # fmt: skip
    told: list[str] = []
    run(recipe, command="", say=told.append)
    assert any("max_length is 64, the number of the model's positions" in line for line in told)
    tokens = json.loads((tmp_path / "run" / "ledger.json").read_text())["tokens"]
    assert tokens == tokens_of_the_short_rows(tiny_tokenizer) + 64


@pytest.mark.parametrize("engine", ["plain", "trainer"])
@pytest.mark.parametrize("length", ["65", "null"])
def test_more_than_learned_positions_is_refused(
    engine: str, length: str, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = recipe_of(f"engine={engine}", "lora=null", f"max_length={length}", family="gpt2",
                       max_position_embeddings=64)  # fmt: skip
    for start in (dry_run, lambda recipe: run(recipe, command="", say=lambda _: None)):
        with pytest.raises(RecipeError, match="learned 64 positions"):
            start(recipe)


def test_the_default_is_one_everywhere() -> None:
    assert SFTConfig.max_length == DataRecipe().max_length == PrepareOptions().max_length == DEFAULT_MAX_LENGTH


def test_rows_that_are_not_prepared_are_the_callers_own(tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    args = SFTConfig(output_dir=str(tmp_path), max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    assert fit_length(args, tiny_model("gpt2", max_position_embeddings=64), None) == []
