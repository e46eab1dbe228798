"""Every optimizer (Muon among them) and every schedule of transformers trains a tiny model, or says what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from honed.errors import RecipeError
from honed.train.options.config import SFTConfig
from honed.train.options.optim import Own

Rows = list[dict[str, Any]]
Make = Callable[..., Any]

# What an optimizer needs: a package, or a device that the tests do not have.
PACKAGES = {
    "adamw_torch_4bit": "torchao", "adamw_torch_8bit": "torchao", "adamw_anyprecision": "torchdistx",
    "lomo": "lomo_optim", "adalomo": "lomo_optim", "grokadamw": "grokadamw", "stable_adamw": "optimi",
    **{name: "galore_torch" for name in (o.value for o in OptimizerNames) if name.startswith("galore")},
    **{name: "apollo_torch" for name in (o.value for o in OptimizerNames) if name.startswith("apollo")},
    **{name: "schedulefree" for name in (o.value for o in OptimizerNames) if name.startswith("schedule_free")},
}  # fmt: skip
BITSANDBYTES = {o.value for o in OptimizerNames if "8bit" in o.value or "lion" in o.value or "paged" in o.value}
BITSANDBYTES = (BITSANDBYTES | {"ademamix", "rmsprop_bnb", "rmsprop_bnb_32bit"}) - {"adamw_torch_8bit"}
DEVICES = {"adamw_torch_xla": "a TPU", "adamw_torch_npu_fused": "an NPU"}
if not torch.cuda.is_available():  # their packages call CUDA by name
    DEVICES |= dict.fromkeys(("galore_adamw_8bit", "galore_adamw_8bit_layerwise", "adalomo"), "a CUDA device")
    DEVICES |= (
        {"stable_adamw": "a CUDA device, or no Triton: its kernels are taken where they are"}
        if find_spec("triton")
        else {}
    )
DEVICES["adamw_torch_8bit"] = "minutes: torchao compiles its step"
DEVICES["galore_adafactor_layerwise"] = "a transformers that does not give it two options that exclude each other"
LOW_RANK = ("galore", "apollo")


def lacks(name: str) -> str | None:
    """What this optimizer needs and is not here."""
    if name in DEVICES:
        return DEVICES[name]
    packages = [PACKAGES[name]] if name in PACKAGES else []
    packages += ["bitsandbytes"] if name in BITSANDBYTES else []
    missing = [package for package in packages if find_spec(package) is None]
    return f"pip install {' '.join(missing)}" if missing else None


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", [o.value for o in (*OptimizerNames, *Own)])
def test_an_optimizer_moves_the_weights(name: str, make: Make, chat_rows: Rows, tiny_model: Callable[..., Any]) -> None:
    if need := lacks(name):
        pytest.skip(f"needs {need}")
    options: dict[str, Any] = {"optim": name, "learning_rate": 1e-3, "max_steps": 2, "max_grad_norm": 1.0}
    if name.startswith(LOW_RANK):
        options |= {"optim_target_modules": ["q_proj", "v_proj"], "optim_args": "rank=2"}
    if name in ("lomo", "adalomo"):
        options["max_grad_norm"] = 0.0
    if name == "schedule_free_radam":  # which waits until it knows the variance
        options["max_steps"] = 7
    model = tiny_model(num_hidden_layers=1)
    before = [p.detach().clone() for p in model.parameters()]
    trainer = make(chat_rows, model=model, **options)
    trainer.train()
    after = [p.detach() for p in model.parameters()]
    assert all(torch.isfinite(p).all() for p in after)
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert all(moved), f"{moved.count(False)} of {len(moved)} weights did not move"


def test_muon_is_an_option_like_the_others(tmp_path: Path) -> None:
    """It is saved by its name, and comes back."""
    args = SFTConfig(output_dir=str(tmp_path), optim="muon")
    assert args.optim is Own.MUON and args.to_dict()["optim"] == "muon"
    assert SFTConfig(output_dir=str(tmp_path), optim=args.to_dict()["optim"]).optim is Own.MUON


def test_an_optimizer_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'muonn', which is not a known optimizer[\s\S]*did you mean 'muon'"):
        SFTConfig(output_dir=str(tmp_path), optim="muonn")


SCHEDULE_KWARGS: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr": 1e-4}, "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
    "warmup_stable_decay": {"num_decay_steps": 2}, "polynomial": {"lr_end": 1e-5},
}  # fmt: skip
WATCHES_EVALUATION = ("reduce_lr_on_plateau", "greedy")


@pytest.mark.parametrize("name", [s.value for s in SchedulerType])
def test_a_schedule_runs(name: str, make: Make, chat_rows: Rows, tiny_model: Callable[..., Any]) -> None:
    options: dict[str, Any] = {"lr_scheduler_type": name, "max_steps": 4, "warmup_steps": 1, "learning_rate": 1e-3}
    options["lr_scheduler_kwargs"] = SCHEDULE_KWARGS.get(name, {})
    if name in WATCHES_EVALUATION:
        options |= {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": chat_rows[:2], "warmup_steps": 0}
    trainer = make(chat_rows, model=tiny_model(num_hidden_layers=1), **options)
    trainer.train()
    rates = [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
    assert len(rates) == 4 and max(rates) == pytest.approx(1e-3) and min(rates) >= 0
    is_flat = name in ("constant", *WATCHES_EVALUATION)
    assert (len(set(rates)) == 1) is is_flat
