"""The subject of all statements: the user's model, rows and recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from honed.data.batch.table import PackedRows
from honed.model.load.added_tokens import ROLES
from honed.prove.engine import QUIET, Step
from honed.prove.models import Chosen
from honed.prove.sample import Sample
from honed.prove.statement import NotChecked
from honed.quantities import counted
from honed.recipe import Recipe
from honed.train.forward.seams import Seams
from honed.train.options.config import SFTConfig
from honed.train.run.run import training_arguments
from honed.train.trainer.trainer import SFTTrainer

# Relative distance that rounding explains, for sums in another order. Not 1e-15 for float64, because models compute
# norms and rotations in float32 whatever their dtype.
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}
ROUNDING_OF_HALF = 5e-2

ON_ITS_OWN: dict[str, Any] = {**QUIET, "fp16": False, "eval_strategy": "no", "logging_strategy": "steps"}
# The recipe's arguments that shape what is trained, without devices, hubs, trackers and launchers.
KEPT = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "seed", "data_seed", "gradient_checkpointing", "optim"),
    *("neftune_noise_alpha", "train_sampling_strategy", "per_device_train_batch_size", "gradient_accumulation_steps"),
    "learning_rates",
)
FOLLOWED = ("trainable", "add_tokens", *ROLES)  # by model and tokenizer, before a trainer is made


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is checked.

    Attributes:
        rows: documents that models compute, one per row.
        model: for statements about sums.
        drill: a small model that is trained for several steps.
        dtype: of both.
        trainer: SFTTrainer; tests put broken ones here.
        steps: cache of `sums`, by name.
    """

    recipe: Recipe
    sample: Sample
    rows: PackedRows
    model: Chosen
    drill: Chosen
    seams: Seams
    dtype: torch.dtype
    device: torch.device
    trainer: type[SFTTrainer] = SFTTrainer
    steps: dict[str, Step] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Any:
        return self.sample.tokenizer

    @property
    def rounding(self) -> float:
        """The bound for two sums that differ only in their order."""
        return ROUNDING.get(self.dtype, ROUNDING_OF_HALF)

    @property
    def size(self) -> str:
        """The rows in numbers, for the user."""
        table = self.rows.table
        trained = int((table.weights > 0).sum())
        return f"{counted(len(table), 'document')}, {counted(len(table.input_ids), 'token')}, {trained:,} trained"

    @property
    def left_out(self) -> list[str]:
        """Keys of the recipe's `train` that statements ignore or set themselves."""
        return sorted(self.recipe.train.keys() - {*KEPT, *FOLLOWED})

    def need_flat(self) -> None:
        """Raises NotChecked where documents cannot share a row in this model."""
        if not self.seams.flat:
            raise NotChecked("; ".join(self.seams.notes) or "documents cannot share a row in this model")

    def need_two(self) -> None:
        """Raises NotChecked where there is one document only."""
        if len(self.rows) < 2:
            raise NotChecked("there is only one document to train on")

    def arguments(self, folder: str | Path, **changes: Any) -> SFTConfig:
        """The recipe's training arguments, with `changes`, for a short run on this machine.

        Raises:
            HonedError: see `training_arguments`.
        """
        kept = set(KEPT) - set(self.drill.without)
        own = {key: value for key, value in self.recipe.train.items() if key in kept}
        size = min(int(own["per_device_train_batch_size"]), max(1, len(self.rows) // 2))
        own |= {"per_device_train_batch_size": size, "use_cpu": self.device.type == "cpu"}
        own |= {"gradient_accumulation_steps": min(int(own.get("gradient_accumulation_steps", 1)), 2)}
        data = replace(self.recipe.data, streaming=False, held_out=None, eval_share=None, packing=False, cache=False)
        short = replace(self.recipe, output=str(folder), data=data, train={**own, **ON_ITS_OWN, **changes})
        return training_arguments(short)


Check = Callable[[Subject], Any]
