"""The state of a run of the plain loop, and the part of it that checkpoints save."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from honed.data.batch.table import PackedRow
from honed.loss.head import ScoringHead
from honed.train.loop.config import LoopConfig
from honed.train.loop.plan import Plan
from honed.train.metrics import StepMetrics
from honed.train.ranks import Ranks
from honed.train.run_folder import checkpoint
from honed.train.run_folder.identity import identity_of_model


@dataclass(slots=True, kw_only=True)
class Run:
    """The state of a run while it trains.

    Attributes:
        wrapped: the model in DistributedDataParallel, if there are several ranks.
        head: the scoring head inside the model, if it supports one (see `seams.py`).
        step: optimizer steps taken.
        loss: this rank's share of the losses since the last log, on the device.
        unlogged: number of steps since the last log.
        identity: what must match in a checkpoint of this run.
    """

    config: LoopConfig
    plan: Plan
    ranks: Ranks
    model: Any
    wrapped: nn.Module
    head: ScoringHead | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    metrics: StepMetrics
    loss: torch.Tensor
    unlogged: int = 0
    step: int = 0
    identity: dict[str, Any]


def state_of(run: Run, *, loss: float) -> checkpoint.State:
    """Returns everything that the next step and the next log depend on; every rank must call it.

    Args:
        loss: the sum of all ranks' `run.loss`.
    """
    epoch, micro_batch = run.plan.place(run.step)
    return checkpoint.State(
        weights=trained(run.model),
        optimizer=run.optimizer.state_dict(),
        scaler=run.scaler.state_dict(),
        random=run.ranks.gather(random_state(run.ranks.device)),
        position={
            "step": run.step,
            "epoch": epoch,
            "micro_batch": micro_batch,
            "loss": loss,
            "unlogged": run.unlogged,
            "metrics": run.ranks.gather(run.metrics.state()),
        },
        identity=run.identity,
    )


@torch.no_grad()
def restore(run: Run, state: checkpoint.State) -> None:
    """Restores the run from a checkpoint."""
    for name, parameter in trained(run.model).items():
        parameter.copy_(state.weights[name])
    run.optimizer.load_state_dict(dict(state.optimizer))
    run.scaler.load_state_dict(dict(state.scaler))
    set_random_state(state.random[run.ranks.rank])
    run.step, run.unlogged = state.position["step"], state.position["unlogged"]
    run.loss.fill_(state.position["loss"] if run.ranks.rank == 0 else 0.0)
    run.metrics.restore(state.position["metrics"][run.ranks.rank])


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the trained parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def identity_of(model: Any, rows: Sequence[PackedRow], config: LoopConfig, ranks: int) -> dict[str, Any]:
    """Returns what must match in a checkpoint of this run, as JSON."""
    data = hashlib.sha256()
    for number in range(len(rows)):
        row = rows[number]
        data.update(row.input_ids.tobytes() + row.weights.tobytes() + repr(row.lengths).encode())
    return {**config.identity(), "ranks": ranks, **identity_of_model(model), "data": data.hexdigest()}


def seed_everything(seed: int) -> None:
    """Seeds every random generator that training may use."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Returns the state of all random generators of this process, in types for `torch.load(weights_only=True)`."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    kind = torch.device(device).type
    if kind in ("cuda", "mps"):
        state[kind] = getattr(torch, kind).get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores all random generators of this process."""
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for kind in ("cuda", "mps"):
        module = getattr(torch, kind)
        if kind in state and module.is_available():
            module.set_rng_state(state[kind])
