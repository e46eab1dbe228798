"""The rows and learning rate of every step of the plain loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from honed.train.loop.config import LoopConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The number of steps, and the rows of each rank in each step; they depend on the settings only."""

    config: LoopConfig
    rows: int
    world: int = 1

    @property
    def micro_batches(self) -> int:
        """Micro-batches per epoch and rank."""
        return math.ceil(self.rows / (self.config.batch_size * self.world))

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch; the last may have fewer micro-batches."""
        return math.ceil(self.micro_batches / self.config.accumulation)

    @property
    def total(self) -> int:
        """Optimizer steps of the run."""
        return self.config.max_steps or math.ceil(self.config.epochs * self.steps_per_epoch)

    def place(self, step: int) -> tuple[int, int]:
        """Returns the epochs finished after `step` steps, and the finished micro-batches of the current epoch."""
        epoch, done = divmod(step, self.steps_per_epoch)
        return epoch, done * self.config.accumulation

    def batches(self, epoch: int, rank: int) -> tuple[list[list[int]], bool]:
        """Returns a rank's micro-batches of an epoch, as row indices, and whether the last one is only a filler.

        Batch b of the epoch belongs to rank b mod `world`. A rank without a batch in the last round gets the epoch's
        first one again, to be trained with weight 0, because all ranks must take part in every backward pass.
        """
        config, size = self.config, self.config.batch_size
        seed = config.seed if config.data_seed is None else config.data_seed
        order = epoch_order(self.rows, seed, epoch) if config.shuffle else list(range(self.rows))
        everyones = [order[i : i + size] for i in range(0, self.rows, size)]
        own = everyones[rank :: self.world]
        lacks_one = len(own) < self.micro_batches
        return own + everyones[:1] * lacks_one, lacks_one

    def due(self, every: float | str, step: int) -> bool:
        """Whether an action with this interval (see `LoopConfig`) is due after step `step`, counted from 1."""
        if every == "epoch":
            return step % self.steps_per_epoch == 0 or step == self.total
        steps = math.ceil(self.total * float(every)) if float(every) < 1 else int(every)
        return steps > 0 and step % steps == 0


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """Returns the order of `n` rows in an epoch, the same as transformers' Trainer draws."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


def warm_up_steps(total: int, config: LoopConfig) -> int:
    """Returns the number of steps in which the learning rate rises from 0."""
    return math.ceil(total * config.warmup) if config.warmup < 1 else int(config.warmup)


def learning_rate(step: int, total: int, config: LoopConfig) -> float:
    """Returns the learning rate of step `step`, counted from 0; a pure function, so it needs no saved state."""
    warmup = warm_up_steps(total, config)
    if step < warmup:
        return config.learning_rate * step / warmup
    left = max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / left))
    factor = {
        "constant": 1.0,
        "linear": max(0.0, (total - step) / left),
        "cosine": cosine * (1 - config.floor) + config.floor,
        # MiniMind counts steps from 1: lr/10 + lr/2 * (1 + cos(pi * step / total))
        "minimind": 0.1 + 0.5 * (1 + math.cos(math.pi * (step + 1 - warmup) / left)),
    }
    return config.learning_rate * factor[config.schedule]
