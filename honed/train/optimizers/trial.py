"""Makes optimizer and schedule for a single weight, so that wrong arguments are reported before the model is loaded."""

from __future__ import annotations

import inspect

import torch
from torch import nn
from transformers import Trainer
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler

from honed.errors import RecipeError
from honed.train.options.config import SFTConfig
from honed.train.options.optim import Own

_NEED_THE_MODEL = ("galore", "apollo", "lomo", "adalomo")  # a ValueError says that there is none here
_STEPS = 1000  # if the number of steps is not known yet
_GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")  # not from lr_scheduler_kwargs


def try_optimizer(args: SFTConfig) -> None:
    """Makes the optimizer that the arguments name.

    Raises:
        RecipeError: a value is out of range, or the optimizer's package is not installed.
    """
    if isinstance(args.optim, Own):
        return
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        if kind.__module__.startswith("torch.optim"):  # others may allocate memory on a GPU
            kind([_weight()], **options)
    except (ImportError, TypeError, ValueError) as error:
        if not isinstance(error, ImportError) and args.optim.value.startswith(_NEED_THE_MODEL):
            return
        raise RecipeError(
            f"optim={args.optim.value!r} cannot be used: {_said(error)}",
            fix="install the package, or set another optim"
            if isinstance(error, ImportError)
            else "correct that argument (learning_rate, adam_beta1, ..., optim_args), or set another optim",
        ) from None


def try_schedule(args: SFTConfig) -> None:
    """Makes the learning rate's schedule.

    Raises:
        RecipeError: lr_scheduler_kwargs lacks an option, or has one that the schedule does not take.
    """
    steps = args.max_steps if args.max_steps > 0 else _STEPS
    try:
        get_scheduler(
            args.lr_scheduler_type,
            torch.optim.SGD([_weight()], lr=args.learning_rate),
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    except (ArithmeticError, TypeError, ValueError) as error:
        known = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[args.lr_scheduler_type]).parameters.values()
        options = [option.name for option in known if option.name not in _GIVEN and option.kind != option.VAR_KEYWORD]
        raise RecipeError(
            f"lr_scheduler_type={args.lr_scheduler_type.value!r} cannot be used with lr_scheduler_kwargs="
            f"{args.lr_scheduler_kwargs}: {_said(error)}",
            fix="correct lr_scheduler_kwargs" + (f"; this schedule takes {', '.join(options)}" if options else ""),
        ) from None


def _weight() -> nn.Parameter:
    return nn.Parameter(torch.zeros(1))


def _said(error: Exception) -> str:
    return " ".join(str(error).split())
