"""Names become folders, folders become models in the right number format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from honed.errors import ModelError
from honed.model.adapters.adapters import attach, lora_config
from honed.model.adapters.load_trained import load_for_generation
from honed.model.load import load
from honed.model.load.load import load_model, load_tokenizer, resolve

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    """A tiny model and its tokenizer, saved in bfloat16."""
    place = tmp_path / "tiny model, 小"
    tiny_model(dtype=torch.bfloat16).save_pretrained(place)
    tiny_tokenizer.save_pretrained(place)
    return place


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, torch.float32),  # trains_all
        ({"trains_all": True}, torch.float32),
        ({"trains_all": False}, torch.float16),  # what the device is said to be good at
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "float64"}, torch.float64),
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"torch_dtype": "bfloat16", "trains_all": False}, torch.bfloat16),
        ({"dtype": "float64", "torch_dtype": "bfloat16"}, torch.float64),
        ({"dtype": "auto"}, torch.bfloat16),
    ],
)
def test_dtype(options: dict[str, Any], expected: torch.dtype, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "pick_dtype", lambda device: torch.float16)
    model = load_model(str(folder), device=CPU, **options)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_a_relative_folder_is_found_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert resolve(folder.name) == resolve(f"./{folder.name}") == str(folder)
    assert load_model(folder.name, device=CPU).config.name_or_path == str(folder)


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert resolve(f"~/{folder.name}") == str(folder)


def test_hub_ids_pass() -> None:
    assert resolve("owner/name-1.5B") == "owner/name-1.5B"


def test_the_default_models_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "resolve_default_model", lambda: tmp_path)
    assert resolve("smollm2-135m-instruct") == str(tmp_path)


@pytest.mark.parametrize("name", ["./nope", "../nope", "/nope/x", "~/nope", "a/b/c", "x.gguf", "m/x.safetensors"])
def test_paths_that_are_not_there(name: str) -> None:
    with pytest.raises(ModelError, match="No such model folder"):
        resolve(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_an_adapter_is_not_trained_as_if_it_were_a_model(folder: Path, tmp_path: Path) -> None:
    attach(load_model(str(folder), device=CPU), lora_config()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="adapter, not a whole model"):
        load_model(str(tmp_path / "adapter"), device=CPU)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="No tokenizer"):
        load_tokenizer(str(folder))


def test_the_tokenizer_is_the_saved_one(folder: Path, tiny_tokenizer: Any) -> None:
    text = "why 狐狸<|im_end|>\n"
    loaded = load_tokenizer(str(folder))
    assert loaded(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert loaded.chat_template == tiny_tokenizer.chat_template


def test_options_reach_transformers(folder: Path) -> None:
    assert load_model(str(folder), device=CPU, attn_implementation="eager").config._attn_implementation == "eager"
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(str(folder), device=CPU, attn_implementation="nonesuch")


@pytest.mark.parametrize("adapted", [True, False])
def test_generation_stops_as_the_runs_own_config_says(adapted: bool, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = load_model(str(folder), device=CPU)
    trained = attach(model, lora_config()) if adapted else model
    trained.save_pretrained(run)
    load_tokenizer(str(folder)).save_pretrained(run)
    model.generation_config.eos_token_id = [7, 2]
    model.generation_config.save_pretrained(run)
    loaded, tokenizer = load_for_generation(str(run), device=CPU)
    assert loaded.generation_config.eos_token_id == [7, 2]
    assert not loaded.training
    assert tokenizer.eos_token == "<|im_end|>"


def test_generation_from_an_adapter_without_a_config_takes_the_bases(folder: Path, tmp_path: Path) -> None:
    attach(load_model(str(folder), device=CPU), lora_config()).save_pretrained(tmp_path / "run")
    load_tokenizer(str(folder)).save_pretrained(tmp_path / "run")
    loaded, _ = load_for_generation(str(tmp_path / "run"), device=CPU)
    assert loaded.generation_config.eos_token_id == 2


def test_an_adapter_whose_base_is_gone(folder: Path, tmp_path: Path) -> None:
    attach(load_model(str(folder), device=CPU), lora_config()).save_pretrained(tmp_path / "run")
    load_tokenizer(str(folder)).save_pretrained(tmp_path / "run")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="No such model folder"):
        load_for_generation(str(tmp_path / "run"), device=CPU)


def test_a_model_whose_files_lack_weights(folder: Path) -> None:
    """transformers fills them with random numbers, other ones at each loading, and only logs it."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 weight .*random numbers: model\.layers\.1\.mlp\.down_proj\.weight"):
        load_model(str(folder), device=CPU)


@pytest.mark.parametrize(
    ("content", "fix"),
    [
        (None, "the model is incomplete: copy its files again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "or a Git LFS pointer"),
    ],
)
def test_files_of_weights_that_cannot_be_read(content: bytes | None, fix: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    if content is not None:
        (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="could not be loaded") as error:
        load_model(str(folder), device=CPU)
    assert fix in error.value.fix


def test_a_missing_shard_and_an_unknown_type(folder: Path, tiny_model: Any) -> None:
    (folder / "model.safetensors").unlink()
    tiny_model().save_pretrained(folder, max_shard_size="20KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(ModelError, match="the model is incomplete"):
        load_model(str(folder), device=CPU)
    config = (folder / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "nextgen"')
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match="pip install -U transformers"):
        load_model(str(folder), device=CPU)
