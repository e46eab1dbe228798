"""AdamW in the backward pass: each gradient is applied and freed as soon as it is complete.

Each weight gets the same update as after the backward pass. Operations that need all gradients at once are not
possible: clipping by their norm, accumulation, averaging over ranks, and skipping steps that are not finite.

Source: the hook is torch's `Tensor.register_post_accumulate_grad_hook`; the idea is from LOMO (Lv et al.,
arXiv:2306.09782), which uses plain gradient descent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from honed.train.optimizers.stochastic_rounding import StochasticRoundingAdamW


class AdamWInBackward(torch.optim.AdamW):
    """`torch.optim.AdamW` that updates each weight during the backward pass, within `in_backward`.

    State, groups and checkpoints are the same as AdamW's.

    Args:
        params, options: as in `torch.optim.AdamW`.
        rounding_seed: seed of `StochasticRoundingAdamW` for bfloat16 weights; None to round to nearest.
    """

    def __init__(self, params: Any, *, rounding_seed: int | None = None, **options: Any) -> None:
        super().__init__(params, **options)
        self._alone: dict[torch.Tensor, torch.optim.Optimizer] = {}
        for number, weight in enumerate(weight for group in self.param_groups for weight in group["params"]):
            if rounding_seed is None:
                self._alone[weight] = torch.optim.AdamW([weight], **options)
            else:
                self._alone[weight] = StochasticRoundingAdamW([weight], seed=rounding_seed, first=number, **options)
        self._groups: dict[torch.Tensor, dict[str, Any]] = {}
        self._squares: list[torch.Tensor] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Does nothing: the backward pass has taken the step."""

    @contextmanager
    def in_backward(self) -> Iterator[None]:
        """Makes backward passes within the block take steps."""
        self._squares = []
        self._groups = {weight: group for group in self.param_groups for weight in group["params"]}
        hooks = [weight.register_post_accumulate_grad_hook(self._update) for weight in self._groups]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def norm(self) -> torch.Tensor:
        """Returns the norm of all gradients of the last step; scalar."""
        return torch.stack(self._squares).sum().sqrt() if self._squares else torch.zeros(())

    def _update(self, weight: torch.Tensor) -> None:
        if weight.grad is None:
            return
        self._squares.append(weight.grad.detach().norm().square())
        alone = self._alone[weight]
        alone.state = self.state  # set each time, because loading a checkpoint replaces it
        alone.param_groups[0].update({key: value for key, value in self._groups[weight].items() if key != "params"})
        alone.step()
        weight.grad = None


def stepping_in_backward(optimizer: Any) -> AdamWInBackward | None:
    """Returns the optimizer, without accelerate's wrapper, if it steps in the backward pass."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if isinstance(inner, AdamWInBackward) else None
