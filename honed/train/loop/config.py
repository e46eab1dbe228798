"""Settings of the plain loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from honed.errors import RecipeError

DTYPES = ("float32", "bfloat16", "float16")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "linear", "cosine", "minimind")
# These affect a run's cost and output, not its results; a resumed run may change them.
_NOT_THE_RUN = (
    *("device", "workers", "eval_batch_size", "token_metrics", "log_every", "eval_every", "save_every", "keep"),
    *("gradient_checkpointing", "recomputed_layers", "trackers", "project", "run_name", "resume"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """Settings of `honed.train.loop.loop.train`.

    Attributes:
        epochs: passes over the rows; fractions are allowed.
        max_steps: optimizer steps; overrides `epochs`.
        batch_size: rows per micro-batch and rank.
        accumulation: micro-batches per step and rank.
        optimizer: "adamw" or "muon" (see `honed.train.optimizers.muon`).
        learning_rate: the peak ("minimind" starts 10% above it).
        learning_rates: regular expression for parameter names -> factor (see `honed.train.optimizers.rates`).
        schedule: "constant", "linear" (to 0), "cosine" (to `floor`), or "minimind" (from 1.1 to 0.1 of the rate).
        warmup: steps in which the rate rises from 0; below 1, a fraction of all steps.
        floor: the fraction of the learning rate at which "cosine" ends.
        weight_decay: applied to matrices, never to biases and norms.
        max_grad_norm: gradients are clipped to this norm; 0 disables clipping.
        dtype: compute dtype, "float32", "bfloat16" or "float16" (not on MPS). Weights keep their own.
        router_aux_loss_coef: weight of the experts' load-balancing loss; None for the model's default.
        neftune_alpha: amount of noise on the embeddings (arXiv:2310.05914).
        shuffle: draw a new order of the rows for each epoch.
        seed: seed of all randomness; `data_seed`, if set, replaces it for the order of the rows.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        recomputed_layers: the number of layers, from the first, whose activations are recomputed; None for all.
        device: "cpu", "cuda", "cuda:1" or "mps"; None chooses automatically.
        workers: processes that collate batches.
        log_every, eval_every, save_every: steps; below 1, a fraction of all steps; 0 never; "epoch" at each one's end.
        keep: the number of this run's checkpoints to keep; None for all.
        trackers: "tensorboard", "wandb", "trackio", "swanlab"; `project` and `run_name` are passed to them.
        resume: "auto" resumes from the folder's newest intact checkpoint, a path from that one; None starts over.
    """

    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 8
    eval_batch_size: int = 8
    accumulation: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 2e-5
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    schedule: str = "cosine"
    warmup: float = 0.0
    floor: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    dtype: str = "float32"
    router_aux_loss_coef: float | None = None
    neftune_alpha: float | None = None
    shuffle: bool = True
    seed: int = 0
    data_seed: int | None = None
    gradient_checkpointing: bool = False
    recomputed_layers: int | None = None
    device: str | None = None
    workers: int = 0
    token_metrics: bool = True
    log_every: float | str = 10
    eval_every: float | str = "epoch"
    save_every: float | str = 0
    keep: int | None = None
    trackers: tuple[str, ...] = ()
    project: str | None = None
    run_name: str | None = None
    resume: str | None = "auto"

    def __post_init__(self) -> None:
        for name, least in (
            ("batch_size", 1),
            ("eval_batch_size", 1),
            ("accumulation", 1),
            ("workers", 0),
            ("warmup", 0),
        ):
            if getattr(self, name) < least:
                raise RecipeError(f"{name} is {getattr(self, name)}.", fix=f"set {least} or more")
        for name, known in (("dtype", DTYPES), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise RecipeError(f"{name} is {getattr(self, name)!r}.", fix=f"set one of {', '.join(known)}")
        if self.max_steps is None and self.epochs <= 0:
            raise RecipeError(f"epochs is {self.epochs}.", fix="set a number above 0")
        if self.max_steps is not None and self.max_steps < 1:
            raise RecipeError(f"max_steps is {self.max_steps}.", fix="set 1 or more, or None")
        for name in ("log_every", "eval_every", "save_every"):
            value = getattr(self, name)
            if value != "epoch" and (isinstance(value, str) or value < 0):
                raise RecipeError(f"{name} is {value!r}.", fix="set a number of steps, 0 for never, or 'epoch'")

    def identity(self) -> dict[str, Any]:
        """Returns the settings that affect the weights; a checkpoint with other values belongs to another run."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _NOT_THE_RUN}
