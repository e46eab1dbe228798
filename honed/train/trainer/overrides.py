"""Subclasses of SFTTrainer: an overridden method gets what TRL would pass to it, or is refused.

An overridden `compute_loss` may read `inputs["attention_mask"]` or pass only `input_ids` to the model. Flat batches
have no mask, and their documents would attend to each other, so such a trainer gets padded batches.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from honed.errors import RecipeError
from honed.train.options.config import SFTConfig

READ_BATCHES = ("compute_loss", "prediction_step")

_ROWS = (
    "prepare the rows first, with dataset.map(...) or formatting_func; rows with `input_ids` and `labels` are used "
    "unchanged"
)
# Hooks of various TRL releases that honed never calls.
NOT_CALLED: Mapping[str, str] = {
    "_prepare_dataset": _ROWS,
    "_prepare_non_packed_dataloader": _ROWS,
    "_prepare_packed_dataloader": _ROWS,
    "_create_model_from_path": "load the model first and pass it",
    "_prepare_peft_model": "pass peft_config, or attach the adapter first",
}


def overridden(cls: type, base: type, name: str) -> bool:
    """Whether `cls` overrides this method of `base`."""
    return getattr(cls, name, None) is not getattr(base, name, None)


def reads_batches(cls: type, base: type) -> bool:
    """Whether a subclass reads batches and so needs padded ones; it opts out by setting `takes_flat_batches`."""
    return not getattr(cls, "takes_flat_batches", False) and any(overridden(cls, base, m) for m in READ_BATCHES)


def adds_metrics(cls: type, base: type, callbacks: Iterable[Any]) -> bool:
    """Whether a subclass or a callback may add metrics to those that an evaluation returns."""
    kinds = [callback if isinstance(callback, type) else type(callback) for callback in callbacks]
    own = [kind for kind in kinds if not issubclass(kind, EarlyStoppingCallback)]
    return any(overridden(cls, base, method) for method in ("evaluate", "evaluation_loop", "_evaluate")) or any(
        overridden(kind, TrainerCallback, "on_evaluate") for kind in own
    )


def check_subclass(cls: type, base: type, args: SFTConfig) -> list[str]:
    """Returns notes for the author of a subclass.

    Raises:
        RecipeError: it overrides a method that is never called, reads batches that ranks share, or has old arguments.
    """
    for name, fix in NOT_CALLED.items():
        if overridden(cls, base, name):
            raise RecipeError(
                f"{cls.__name__} overrides {name}, a method of TRL's trainer that honed never calls.", fix=fix
            )
    notes = []
    if reads_batches(cls, base):
        layout = "flat, and it must pass every key on to the model" if args.packing or args.eval_packing else "padded"
        mine = " and ".join(name for name in READ_BATCHES if overridden(cls, base, name))
        notes.append(f"{cls.__name__} has a {mine} of its own: batches are {layout}.")
    if args.sequence_parallel_size > 1 and any(overridden(cls, base, method) for method in READ_BATCHES):
        raise RecipeError(
            f"{cls.__name__} reads batches, but sequence_parallel_size gives it only slices of them.",
            fix="leave sequence_parallel_size out",
        )
    if overridden(cls, base, "compute_loss"):
        _takes_items(cls)
    return notes


def _takes_items(cls: type) -> None:
    parameters = inspect.signature(cls.compute_loss).parameters  # type: ignore[attr-defined] # of every SFTTrainer
    if "num_items_in_batch" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise RecipeError(
            f"{cls.__name__}.compute_loss does not take num_items_in_batch, which transformers has passed since 4.46.",
            fix="add num_items_in_batch=None to its arguments",
        )


def scale_note(cls: type, accumulation_steps: int, scaled: bool | None) -> str | None:
    """What to say of a subclass's `compute_loss` after its first call in training; None if nothing.

    A loss of its own that reads num_items_in_batch is taken to divide by it.

    Args:
        accumulation_steps: micro-batches of a step.
        scaled: whether honed's `compute_loss` was called with num_items_in_batch; None: it was not called.
    """
    if scaled or accumulation_steps == 1 or (scaled is None and _reads_items(cls)):
        return None
    fix = (
        f"{cls.__name__}.compute_loss never calls honed's; divide its sum of token losses by num_items_in_batch, the "
        f"number of trained tokens of the whole step, or {_declared_mean(cls)} for the mean of the micro-batches' means"
        if scaled is None
        else f"{cls.__name__}.compute_loss calls super().compute_loss without num_items_in_batch; pass it on"
    )
    return (
        f"The losses of {accumulation_steps} micro-batches are added up, so the mean of each makes the gradient "
        f"{accumulation_steps} times too large. {fix}."
    )


def _declared_mean(cls: type) -> str:
    """How a class says that its loss is the mean of a micro-batch, so that transformers divides it."""
    if hasattr(Trainer, "loss_is_scaled_for_ga"):  # since 5.19
        return f"set loss_is_scaled_for_ga = False in {cls.__name__}"
    return "set self.model_accepts_loss_kwargs = False after super().__init__"


def _reads_items(cls: type) -> bool:
    """Whether the code of `cls.compute_loss` reads num_items_in_batch, or the `**kwargs` that hold it."""
    function = inspect.unwrap(cls.compute_loss)  # type: ignore[attr-defined] # of every SFTTrainer
    kwargs = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.VAR_KEYWORD}
    read: set[object] = set()
    for step in dis.get_instructions(function):
        if step.opname.startswith("LOAD"):  # some load two names at once
            read.update(step.argval if isinstance(step.argval, tuple) else [step.argval])
    return not read.isdisjoint({"num_items_in_batch", *kwargs})
