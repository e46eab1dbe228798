"""Two processes under DeepSpeed's ZeRO-2 and ZeRO-3 train, save, go on and export what one process does.

DeepSpeed is no requirement; `pip install deepspeed ninja` and a C++ compiler bring these tests to run, on CPUs (gloo).
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from program import logits_of, make_model
from test_engines import ALONE, SAVES, same_run, same_weights, settings
from transformers import AutoModelForCausalLM

from honed.model.export.export import Probe, export
from honed.train.run_folder.checkpoint import check

if TYPE_CHECKING:
    from conftest import Ended, Ranks

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install deepspeed")
ON_CPU = {"DS_ACCELERATOR": "cpu"}
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


@pytest.mark.parametrize("stage", [2])  # ZeRO-3 refuses models that it loads: tests/train/forward/test_seams.py
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
