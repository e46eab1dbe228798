"""Runs of `test_combinations_of_ranks.py` on one rank, all in one process group. It is no test itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import AutoTokenizer

from honed.data.batch.table import PackedRows
from honed.train.trainer.trainer import SFTTrainer
from tests.conftest import make_tiny_model
from tests.train.rows_by_hand import rows_of
from tests.train.test_combinations import StopsAtOnce, adapter_of, arguments_of, how_of, model_of, shaken

LAUNCHES: dict[str, dict[str, Any]] = {  # how the weights lie on the ranks
    "ddp": {},
    "fsdp2": {"reshard_after_forward": True},
    "in parts": {"state_dict_type": "SHARDED_STATE_DICT", "reshard_after_forward": False},
    "offloaded": {"cpu_offload": True, "cpu_ram_efficient_loading": True},
}


def train_all(job: dict[str, Any], rank: int) -> None:
    """The job's runs, one after another; what became of number N on this rank is in OUT/N/rank-RANK.pt."""
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    for number, run in enumerate(job["runs"]):
        folder = Path(job["out"]) / str(number)
        folder.mkdir(exist_ok=True)
        torch.save(train(run, folder, tokenizer), folder / f"rank-{rank}.pt")


def train(run: dict[str, Any], folder: Path, tokenizer: Any) -> dict[str, Any]:
    """Trains, and saves the model in `saved`; where the run is resumed, the second trainer's."""
    if run["around"] == "resumed":
        first = trainer_of(run, folder, tokenizer)
        first.add_callback(StopsAtOnce())
        first.train()
    trainer = trainer_of(run, folder, tokenizer)
    trainer.train(resume_from_checkpoint="auto" if run["around"] == "resumed" else None)
    trainer.save_model(str(folder / "saved"))  # all ranks gather what one writes, and put their weights in parts again
    weights = {name: whole(weight) for name, weight in trainer.model.named_parameters()}
    rows = trainer.train_dataset if isinstance(trainer.train_dataset, PackedRows) else None
    steps = None if rows is None else [trainer.rows_of(step) or [] for step in range(1, trainer.state.max_steps + 1)]
    told = {"log": trainer.state.log_history, "wrapper": type(trainer.model_wrapped).__name__}
    return {"weights": weights, "rows": rows, "steps": steps, "total": trainer.state.max_steps, **told}


def trainer_of(run: dict[str, Any], folder: Path, tokenizer: Any) -> SFTTrainer:
    """A trainer of the run, whose adapter is shaken."""
    model = model_of(run, make_tiny_model)
    more: dict[str, Any] = {"sequence_parallel_size": run["sharing"]}
    if run["launch"] != "ddp":
        more |= {"fsdp": True, "fsdp_config": {"version": 2, **copy.deepcopy(LAUNCHES[run["launch"]])}}
    if run["checkpointing"] == "reentrant":
        run, more = {**run, "checkpointing": True}, {**more, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    args = arguments_of(run, how_of(run, model), folder, **more)
    if args.fsdp:  # accelerate shards on GPUs only: this says they are
        args.distributed_state.distributed_type = DistributedType.MULTI_GPU
    rows, held_out = rows_of(run["data"], seed=0, count=run["count"]), rows_of(run["data"], seed=5, count=7)
    trainer = SFTTrainer(model, args, None, rows, held_out, tokenizer, peft_config=adapter_of(run))
    shaken(trainer.model, model.dtype)
    if run["launch"] == "offloaded":  # memory is pinned for GPUs
        trainer.accelerator.state.fsdp_plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)
    return trainer


def whole(weight: Any) -> torch.Tensor:
    """A parameter, out of the ranks' parts of it."""
    return (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).detach().clone()
