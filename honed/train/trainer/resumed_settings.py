"""A run that resumes with other settings trains with them: optimizer and schedule do not keep the checkpoint's.

Their saved states hold settings (learning rate, weight decay, betas) besides what was learned, and loading a state puts
the old settings in place of the new ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

_SETTINGS = ("initial_lr", "weight_decay", "betas", "eps", "momentum")


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """What the arguments set in a parameter group; `initial_lr` is the rate that a schedule multiplies."""
    return {name: group[name] for name in _SETTINGS if name in group}


def set_rates(scheduler: Any) -> bool:
    """Computes the learning rates, in place, from each group's `initial_lr` and the schedule's present step.

    Rates whose settings have not changed keep their bits. Returns whether it did: only a `LambdaLR` can be computed.
    """
    if not isinstance(scheduler, LambdaLR):
        return False
    groups = scheduler.optimizer.param_groups
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        rate = base * factor(scheduler.last_epoch)
        if isinstance(group["lr"], torch.Tensor):  # of a compiled optimizer
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    scheduler._last_lr = [group["lr"] for group in groups]
    return True
