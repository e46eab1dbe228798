"""AdamW inside the backward pass: a gradient is used up and freed as soon as it is there, so they are never all alive.

It costs no accuracy (each weight gets the update that it would get afterwards), but what needs all gradients at once
cannot be had: clipping by their norm, accumulation, averaging over ranks, and not taking a step that went wrong.

Source: the hook is torch's `Tensor.register_post_accumulate_grad_hook`; the idea is LOMO's (Lv et al.,
arXiv:2306.09782), for plain gradient descent there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from honed.train.optimizers.stochastic_rounding import StochasticRoundingAdamW


class AdamWInBackward(torch.optim.AdamW):
    """`torch.optim.AdamW` that updates a weight as soon as its gradient is complete, in backward passes `in_backward`.

    Its state, groups and checkpoints are AdamW's own, so either goes on from the other's checkpoint.

    Args:
        params, options: as of `torch.optim.AdamW`.
        rounding_seed: rounds bfloat16 weights as `StochasticRoundingAdamW` with this seed does; None for the nearest.
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
        """Nothing is left to do: called after the backward pass, by whoever steps optimizers."""

    @contextmanager
    def in_backward(self) -> Iterator[None]:
        """Backward passes in this block are steps; only in it, so that nobody else's backward pass is one."""
        self._squares = []
        self._groups = {weight: group for group in self.param_groups for weight in group["params"]}
        hooks = [weight.register_post_accumulate_grad_hook(self._update) for weight in self._groups]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def norm(self) -> torch.Tensor:
        """Of all gradients of the last step together; scalar."""
        return torch.stack(self._squares).sum().sqrt() if self._squares else torch.zeros(())

    def _update(self, weight: torch.Tensor) -> None:
        if weight.grad is None:
            return
        self._squares.append(weight.grad.detach().norm().square())
        alone = self._alone[weight]
        alone.state = self.state  # loading a checkpoint makes a new one
        alone.param_groups[0].update({key: value for key, value in self._groups[weight].items() if key != "params"})
        alone.step()
        weight.grad = None


def stepping_in_backward(optimizer: Any) -> AdamWInBackward | None:
    """The optimizer, out of accelerate's wrapper, if it steps in the backward pass."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if isinstance(inner, AdamWInBackward) else None
