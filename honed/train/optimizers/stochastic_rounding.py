"""AdamW for bfloat16 weights: computed in float32, written back with stochastic rounding.

bfloat16 has 8 significant bits, so rounding to nearest loses updates below 1/512 of a weight: nearly all of them at
usual learning rates. Stochastic rounding is exact on average, so small updates add up (Zamirai et al.,
arXiv:2010.06192). Both moments are bfloat16 and rounded in the same way: rounded to nearest, the second one could never
decay, because it loses only 1/1000 per step.

Bytes per weight: 2 for the weight, 2 for its gradient, 4 for the moments; 16 in float32.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import torch
from torch.optim.adamw import adamw

# Elements computed at a time, to limit the size of float32 copies.
CHUNK_ELEMENTS = 1 << 24


class StochasticRoundingAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` that rounds bfloat16 weights and moments stochastically.

    The random bits depend on the seed, the weight's number and its step only. So resumed runs are bit-identical, ranks
    round the same weights in the same way, and no other generator is used.

    Args:
        params, lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
        seed: seed of the rounding.
        first: number of the first weight, if each weight has its own optimizer.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        seed: int = 0,
        first: int = 0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self._seed, self._first = seed, first
        self._generators: dict[torch.device, torch.Generator] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        weights = [(weight, group) for group in self.param_groups for weight in group["params"]]
        for number, (weight, group) in enumerate(weights, start=self._first):
            if weight.grad is not None:
                self._update(weight, group, number)
        return loss

    def _update(self, weight: torch.Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] = state["step"].cpu()  # loading a checkpoint may have moved it to the device
        noise = self._noise(weight.device, f"{self._seed}/{number}/{int(state['step'])}")
        kept = [torch.atleast_1d(tensor) for tensor in (weight, state["exp_avg"], state["exp_avg_sq"], weight.grad)]
        rows = max(1, CHUNK_ELEMENTS // max(1, kept[0][0].numel()))
        for *parts, gradient in zip(*(tensor.split(rows) for tensor in kept), strict=True):
            exact = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
            _adamw(exact, gradient.to(exact[0].dtype), state["step"], group)
            for part, value in zip(parts, exact, strict=True):
                part.copy_(stochastic_round(value, noise) if part.dtype == torch.bfloat16 else value)
        state["step"] += 1

    def _noise(self, device: torch.device, key: str) -> torch.Generator:
        generator = self._generators.setdefault(device, torch.Generator(device))
        generator.manual_seed(crc32(key.encode()))  # the CPU's generator uses 32 bits of a seed
        return generator


def stochastic_round(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rounds `x` to bfloat16, each number to one of its two neighbours so that the expectation is exact.

    Args:
        x: float32; infinity and NaN are kept.
        generator: on the device of `x`.
    """
    bits = x.view(torch.int32)
    noise = torch.randint(1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    # Truncating the low 16 bits rounds towards 0; the noise carries over into the high bits with the right probability.
    rounded = noise.add_(bits).bitwise_and_(-(1 << 16)).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)  # a NaN's bits might carry into the sign


def _adamw(state: list[torch.Tensor], gradient: torch.Tensor, step: torch.Tensor, group: dict[str, Any]) -> None:
    """Takes one step of torch's AdamW on weight and moments, in place."""
    weight, mean, square = state
    steps = torch.full((), float(step), device=weight.device)  # a copy, because torch increments it
    adamw(
        [weight], [gradient], [mean], [square], [], [steps],
        amsgrad=False, maximize=False, fused=True, lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1],
        weight_decay=group["weight_decay"], eps=group["eps"],
    )  # fmt: skip
