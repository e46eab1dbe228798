"""AdaLoRA, whose training step does more than apply gradients: it reallocates the adapter's ranks.

Source: Zhang et al., arXiv:2303.10512. transformers' Trainer does not reallocate ranks, and peft adds the orthogonality
penalty only to a loss that the model computes itself. Without both, AdaLoRA is LoRA that never prunes a rank.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from honed.errors import ModelError
from honed.model.adapters.adapters import adapter_method


class AdaLoraSchedule(TrainerCallback):
    """Keeps AdaLoRA's singular vectors orthogonal and reallocates its rank budget.

    The penalty's gradient is computed before the first micro-batch, so it counts once per step and is clipped together
    with the rest.
    """

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Adds the gradient of the orthogonality penalty."""
        adapter = _unwrapped(model)
        config = adapter.active_peft_config
        (config.orth_reg_weight * orthogonality_penalty(adapter)).backward()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Updates the ranks' importance scores while the gradients still exist, and masks the ranks over the budget."""
        _unwrapped(model).base_model.update_and_allocate(state.global_step)


def adalora_callbacks(model: Any, *, fp16: bool) -> list[TrainerCallback]:
    """Returns the callback for a model whose active adapter is AdaLoRA; none for any other.

    Raises:
        ModelError: AdaLoRA with fp16: the loss is scaled there, and the penalty's gradient would not be.
    """
    if adapter_method(model) != "ADALORA":
        return []
    if fp16:
        raise ModelError("AdaLoRA cannot be trained with fp16=True.", fix="use bf16=True, or LoRA")
    return [AdaLoraSchedule()]


def orthogonality_penalty(model: Any) -> torch.Tensor:
    """Mean over the active adapter's matrices of || A A^T - I || and || B^T B - I || (Frobenius), a scalar."""
    mark = f".{model.active_adapter}"
    norms = []
    for name, weight in model.named_parameters():
        if name.endswith(mark) and (".lora_A." in name or ".lora_B." in name):
            square = weight @ weight.T if ".lora_A." in name else weight.T @ weight
            norms.append(torch.linalg.matrix_norm(square - torch.eye(len(square)).to(square)))
    return torch.stack(norms).mean()


def _unwrapped(model: Any) -> Any:
    """The peft model inside a data-parallel wrapper."""
    return getattr(model, "module", model)
