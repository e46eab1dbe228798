"""The recipes that come with honed: each is read, is what its header says, and runs in its smallest form.

`multi_gpu` runs in tests/distributed/test_train_command.py, `demo` in tests/cli/test_demo.py, `vlm` in
tests/train/forward/test_vision_training.py, the MiniMind chain in tests/cli/test_new.py.
"""

from __future__ import annotations

import json
import random
import re
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import honed.recipes
from honed.cli.recipe_arguments import divide, find_recipe
from honed.recipe import load_recipe
from honed.train.run.run import run, training_arguments

FOLDER = Path(honed.recipes.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OWN = ["full", "lora", "moe", "multi_gpu", "packing", "qlora"]
WITH_COMMAND = [*OWN, "vlm", "minimind_pretrain", "minimind_sft", "demo"]
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("qwen3", {}),
    "lora": ("qwen3", {}),
    "packing": ("qwen3", {}),
    "qlora": ("llama", {"hidden_size": 64, "head_dim": 16}),
    "moe": ("qwen3_moe", MOE),
}


def commands(name: str) -> list[str]:
    """The `honed train` lines of the recipe's header, whatever starts them."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [found[1] for line in lines if (found := re.match(r"# .*honed train ([^`]*)", line))]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_together(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe(name), [f"output={tmp_path / 'run'}"])
    assert training_arguments(recipe).output_dir == str(tmp_path / "run")
    assert recipe.data.overlong == "drop"


def test_every_recipe_is_looked_at() -> None:
    assert sorted(WITH_COMMAND) == NAMES


@pytest.mark.parametrize("name", WITH_COMMAND)
def test_the_headers_command_is_this_recipes(name: str) -> None:
    assert commands(name)
    for command in commands(name):
        path, changes = divide(shlex.split(command))
        assert path == find_recipe(name)
        training_arguments(load_recipe(path, changes))


@pytest.mark.parametrize("name", OWN)
def test_the_header_says_what_it_was_not_measured_on(name: str) -> None:
    header = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\nmodel:")[0]
    assert re.search(r"not measured on (a GPU|GPUs)", header, flags=re.IGNORECASE)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_headers_command_runs(  # noqa: PLR0917
    name: str,
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    tiny_tokenizer: Any,
    chat_rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Word for word, where the model's name is a folder with a tiny one; only steps and sizes are set small."""
    if name == "qlora" and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    path, changes = divide(shlex.split(commands(name)[0]))
    asked = load_recipe(path, changes)
    monkeypatch.chdir(tmp_path)
    family, sizes = FAMILIES[name]
    tiny_model(family, **sizes).save_pretrained(asked.model)
    tiny_tokenizer.save_pretrained(asked.model)
    words = ["".join(random.choices("abcdefgh", k=5)) for _ in range(12 * 30)]  # rows alike would not be divided
    texts = [{"text": " ".join(words[n : n + 30])} for n in range(0, len(words), 30)]
    rows = texts if name == "packing" else chat_rows
    Path("texts").mkdir()
    file = Path(asked.data.files[0].replace("*", "some"))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["max_steps=2", "use_cpu=true", "gradient_accumulation_steps=2", "data.eval_share=0.2", "max_length=64"]
    recipe = load_recipe(path, [*changes, *small])
    result = run(recipe, command=f"honed train {name}", say=lambda _: None)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert all(line["loss"] > 0 for line in lines if "loss" in line)
    assert lines[-1].keys() & {"eval_loss", "train_loss"}
    ledger = json.loads((result.folder / "ledger.json").read_text())
    assert 0 < ledger["evaluation"]["rows_trained"] < ledger["rows_trained"]
    weights = "model.safetensors" if recipe.lora is None else "adapter_model.safetensors"
    assert (result.folder / weights).is_file()


def test_the_sharded_setup_is_what_accelerate_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands import launch

    monkeypatch.setattr(launch, "is_bf16_available", lambda **_: True, raising=False)
    config = FOLDER / "accelerate" / "fsdp2.yaml"
    given = launch.launch_command_parser().parse_args(
        ["--config_file", str(config), "--num_processes", "2", "-m", "honed"]
    )
    arguments, *_ = launch._validate_launch_command(given)
    assert arguments.use_fsdp
    environment = launch.prepare_multi_gpu_env(arguments)
    wanted = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    assert {key: environment.get(key) for key in wanted} == wanted
