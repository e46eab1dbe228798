"""A run that resumes with other settings trains with them: optimizer and schedule do not keep the checkpoint's.

Their saved states hold settings (learning rate, weight decay, betas) besides what was learned, and loading a state puts
the old settings in place of the new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from honed.train.run_folder.checkpoint import read_position
from honed.train.trainer.watched import WatchedTrainer

_SETTINGS = ("initial_lr", "weight_decay", "betas", "eps", "momentum")


class ResumedSettingsTrainer(WatchedTrainer):
    """The layer of `SFTTrainer` that loads the states of optimizer and schedule without their settings."""

    _say: Callable[[str], None]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Called by Trainer. DeepSpeed has loaded its own states before."""
        settings = [settings_of(group) for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.is_deepspeed_enabled:
            return
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # accelerate wraps it
        if isinstance(scheduler, LambdaLR):
            set_rates(scheduler)
        elif read_position(checkpoint)[1].get("learning_rate", self.args.learning_rate) != self.args.learning_rate:
            self._say(
                f"learning_rate={self.args.learning_rate:g} has no effect: the schedule "
                f"({type(scheduler).__name__}) continues from the checkpoint's learning rate."
            )


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """What the arguments set in a parameter group; `initial_lr` is the rate that a schedule multiplies."""
    return {name: group[name] for name in _SETTINGS if name in group}


def set_rates(scheduler: LambdaLR) -> None:
    """Computes the learning rates, in place, from each group's `initial_lr` and the schedule's present step.

    Rates whose settings have not changed keep their bits.
    """
    groups = scheduler.optimizer.param_groups
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        rate = base * factor(scheduler.last_epoch)
        if isinstance(group["lr"], torch.Tensor):  # of a compiled optimizer
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    scheduler._last_lr = [group["lr"] for group in groups]
