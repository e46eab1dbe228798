"""Two processes under DeepSpeed's ZeRO-2 and ZeRO-3 train, save, go on and export what one process does.

DeepSpeed is no requirement; `pip install deepspeed ninja` and a C++ compiler bring these tests to run, on CPUs (gloo).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from program import logits_of, make_model
from safetensors.torch import load_file
from test_engines import ALONE, SAVES, same_run, same_weights, settings
from transformers import AutoModelForCausalLM

import honed.recipes
from honed.model.export.export import Probe, export
from honed.train.run_folder.checkpoint import check

if TYPE_CHECKING:
    from conftest import Ended, Ranks

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install deepspeed")
ON_CPU = {"DS_ACCELERATOR": "cpu"}
CONFIGURATIONS = Path(honed.recipes.__file__).parent / "deepspeed"
BUILD = """
from deepspeed.accelerator import get_accelerator
get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)
"""


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    """Compiles how DeepSpeed's processes share memory: half a minute once, in which ranks would wait for each other."""
    environment = {**os.environ, **ON_CPU}
    done = subprocess.run([sys.executable, "-c", BUILD], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"DeepSpeed cannot compile its parts here: {done.stderr.strip().splitlines()[-1]}")


def zero(stage: int) -> dict[str, Any]:
    """The arguments of a run; what is "auto" comes from its other arguments."""
    own = dict.fromkeys(("train_batch_size", "gradient_accumulation_steps", "gradient_clipping"), "auto")
    sharded = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    config = {**own, "train_micro_batch_size_per_gpu": "auto", "zero_optimization": sharded}
    return {"deepspeed": {**config, "zero_allow_untested_optimizer": True}}


def job(stage: int, **train: Any) -> dict[str, Any]:
    return {**settings({**zero(stage), **train}), "env": ON_CPU, "limit": 300}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("lora", [False, True], ids=["all", "lora"])
def test_two_processes_train_what_one_does(stage: int, lora: bool, ranks: Ranks) -> None:
    """Every logged line and the evaluation to 1e-6, and the weights that are saved.

    An adapter's to 1e-5: its B begins at zero, so all of it is what two steps in float32 made of rounded sums.
    """
    found = ranks(f"zero-{stage}-{lora}", lora=lora, **job(stage))
    assert found.told()["wrapper"] == "DeepSpeedEngine"
    same_run(found, ranks(f"zero-alone-{lora}", lora=lora, world=1, **settings(ALONE)), 1e-5 if lora else 1e-6)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_is_gone_on_from(stage: int, ranks: Ranks) -> None:
    whole = ranks(f"zero-whole-{stage}", **job(stage, **SAVES))
    first = whole.out / "checkpoint-1"
    assert check(first) == [] and (first / "global_step1").is_dir()
    resumed = ranks(f"zero-resumed-{stage}", resume=str(first), **job(stage))
    assert "optimizer begins anew" not in resumed.err(0)
    assert resumed.steps()[-1]["loss"] == pytest.approx(whole.steps()[-1]["loss"], rel=1e-6)
    same_weights(resumed, whole)


@pytest.mark.parametrize("stage", [2, 3])  # of a model by name, which is loaded whole for ZeRO-3 too
def test_an_adapter_is_merged(stage: int, ranks: Ranks, tmp_path: Path) -> None:
    """The export loads in plain transformers, with the logits that the sharded model gave when its training ended."""
    base, out = tmp_path / "base", tmp_path / "merged"
    make_model().save_pretrained(base)
    trained: Ended = ranks(f"zero-merged-{stage}", base=str(base), lora=True, **job(stage, learning_rate=0.1))
    wanted = torch.tensor(trained.told()["logits"])
    assert export(trained.out / "model", out, probes=[Probe(ids=range(3, 23), n_prompt=10)]).passes
    untrained, found = (torch.tensor(logits_of(AutoModelForCausalLM.from_pretrained(folder))) for folder in (base, out))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert float((wanted - untrained).abs().max()) > 0.1


@pytest.fixture
def recipe(ranks: Ranks, model_folder: Path, chat_rows: list[dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """Runs the recipe for several GPUs on a tiny model, eight rows and two CPUs; gives its folder.

    With a `stage`, under the configuration that honed ships.
    """
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in chat_rows[:8]))
    given = {"model": model_folder, "data.files": rows, "data.held_out": rows, "data.packing": "false"}
    small = {"max_steps": 4, "gradient_accumulation_steps": 1, "learning_rate": 0.01, "adam_epsilon": 1e-3}
    usual = {
        **given,
        **small,
        "dataloader_num_workers": 0,
        "use_cpu": "true",
        "bf16": "false",
        "logging_steps": 1,
        "save_strategy": "no",
    }

    def run(name: str, stage: int | None = None, **changes: Any) -> Path:
        out, world = tmp_path / name, 1 if stage is None else 2
        zero = {} if stage is None else {"deepspeed": CONFIGURATIONS / f"zero{stage}.json"}
        own = {"per_device_train_batch_size": 4 // world, "output": out, **zero, **changes}
        command = ["train", "multi_gpu", *(f"{key}={value}" for key, value in {**usual, **own}.items())]
        ended = ranks(name, out=tmp_path / f"{name}-said", world=world, command=command, env=ON_CPU, limit=300)
        assert ended.statuses == [0] * world, ended.err(0)
        return out

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [file] = folder.glob("*.safetensors")
    return load_file(file)


def metrics(folder: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("changes", [{"lora": "null"}, {}], ids=["all", "lora"])
def test_a_recipe_trains_what_one_process_does(
    stage: int, changes: dict[str, str], recipe: Callable[..., Path]
) -> None:
    """Losses, gradient norms and evaluations to 1e-6; weights as above."""
    found, wanted = recipe("found", stage, **changes), recipe("wanted", **changes)
    for key in ("loss", "grad_norm", "eval_loss"):
        assert len(metrics(wanted, key)) >= 2
        assert metrics(found, key) == pytest.approx(metrics(wanted, key), rel=1e-6), key
    ours, theirs = weights(found), weights(wanted)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert float((ours[name] - tensor).norm()) <= (1e-6 if changes else 1e-5) * float(tensor.norm()), name


@pytest.mark.parametrize("stage", [2, 3])
def test_the_same_command_goes_on(stage: int, recipe: Callable[..., Path], tmp_path: Path) -> None:
    """From the checkpoint of a run that was stopped after two steps of four: the same weights to the last bit."""
    saves = {"lora": "null", "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    out = recipe("run", stage, **saves)
    whole = shutil.copytree(out, tmp_path / "whole")
    shutil.rmtree(out / "checkpoint-4")
    (out / "run.json").write_text('{"status": "interrupted"}')
    recipe("run", stage, **saves)
    assert "resuming from checkpoint-2" in (tmp_path / "run-said" / "out-0.txt").read_text()
    assert metrics(out, "loss") == metrics(whole, "loss")
    assert all(torch.equal(tensor, weights(out)[name]) for name, tensor in weights(whole).items())


def test_zero3_computes_in_bfloat16_as_zero2_does(recipe: Callable[..., Path]) -> None:
    """A model that is shared out before DeepSpeed's engine sees it keeps the format that it comes in."""
    two, three = (recipe(f"bf16-{stage}", stage, bf16="true", lora="null") for stage in (2, 3))
    assert {tensor.dtype for tensor in weights(three).values()} == {torch.bfloat16}
    assert metrics(three, "loss") == pytest.approx(metrics(two, "loss"), rel=1e-3)
