"""What an optimizer step must compute, the slow way: each document alone, whole logits, AdamW by hand. It is no test.

Nothing of honed is imported here. A step is a list of micro-batches, a micro-batch a list of documents; which document
belongs to which of them matters for the experts' balance only, which is a mean over the tokens of a micro-batch.

Shapes: L tokens of a document, T tokens of a micro-batch, E experts, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

NEVER_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """Token ids, and the weight of predicting each from those before it; that of the first says nothing."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, ids: Sequence[int], weights: Sequence[float]) -> Document:
        return cls(tuple(map(int, ids)), (0.0, *map(float, weights[1:])))


Step = Sequence[Sequence[Document]]


@dataclass(frozen=True)
class Training:
    """How the weights change; names are those of the papers."""

    loss: str = "nll"
    smoothing: float = 0.0
    balance: float = 0.0
    learning_rate: float = 1e-2
    schedule: str = "linear"
    warmup: int = 0
    weight_decay: float = 0.0
    decay_by_name: bool = True
    largest_norm: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-3
    sgd: bool = False
    faster: str = ""  # weights with this in their names learn `times` as fast
    times: float = 1.0


def loss_of_step(model: Any, step: Step, how: Training) -> torch.Tensor:
    """sum of weight * token loss / sum of weights, over the whole step; and the balance of its experts."""
    total = sum(sum(document.weights) for batch in step for document in batch)
    loss = torch.zeros((), dtype=torch.float64)
    for batch in step:
        outputs = [model(input_ids=torch.tensor([d.ids]), use_cache=False, **_asks(how)) for d in batch]
        for document, output in zip(batch, outputs, strict=True):
            weights_L = torch.tensor(document.weights[1:], dtype=torch.float64)
            losses_L = token_losses(output.logits[0, :-1], torch.tensor(document.ids[1:], dtype=torch.long), how)
            loss = loss + losses_L.double() @ weights_L / (total or 1.0)
        if how.balance:
            share = sum(sum(document.weights) for document in batch) / (total or 1.0)
            loss = loss + how.balance * share * balance_of(model, [output.router_logits for output in outputs])
    return loss


def _asks(how: Training) -> dict[str, Any]:
    return {"output_router_logits": True} if how.balance else {}


def token_losses(logits_LV: torch.Tensor, ids_L: torch.Tensor, how: Training) -> torch.Tensor:
    """Of each token that is asked for."""
    logp_LV = torch.log_softmax(logits_LV.double(), -1)
    nll_L = -logp_LV[torch.arange(len(ids_L)), ids_L]
    if how.loss == "dft":
        return nll_L * torch.exp(-nll_L).detach()
    return (1 - how.smoothing) * nll_L - how.smoothing * logp_LV.mean(-1)


def balance_of(model: Any, logits: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """The balance of a micro-batch's experts, from the router logits of each document and layer.

    Switch Transformer's (arXiv:2101.03961): over all layers' and documents' tokens together. MiniMind has DeepSeekMoE's
    (arXiv:2401.06066): for each sequence and layer, a mean over sequences, a sum over layers.
    """
    config = model.config.get_text_config()
    top_k = config.num_experts_per_tok
    if config.model_type == "minimind":
        return sum(_switch([layer], top_k) / top_k for layers in logits for layer in layers) / len(logits)
    return _switch([layer for layers in logits for layer in layers], top_k)


def _switch(logits: Sequence[torch.Tensor], top_k: int) -> torch.Tensor:
    probabilities_TE = torch.softmax(torch.cat([one.reshape(-1, one.shape[-1]) for one in logits]), -1)
    chosen_TE = torch.zeros_like(probabilities_TE).scatter(-1, probabilities_TE.topk(top_k).indices, 1.0)
    return chosen_TE.shape[-1] * (chosen_TE.mean(0) * probabilities_TE.mean(0)).sum()


class ByHand:
    """A model trained step by step; `log` has the loss, the norm and the learning rate of each step."""

    def __init__(self, model: Any, how: Training, steps: int) -> None:
        self.model, self.how, self.steps = model, how, steps
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.state = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.trained.items()}
        self.log: list[dict[str, float]] = []
        norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)}
        self.norms = {name for name in self.trained if name.rpartition(".")[0] in norms}

    def take(self, step: Step) -> None:
        """One optimizer step."""
        number = len(self.log)
        loss = loss_of_step(self.model, step, self.how)
        gradients = torch.autograd.grad(loss, list(self.trained.values()), allow_unused=True)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))
        limit, rate = self.how.largest_norm, self.rate(number)
        factor = min(1.0, limit / (norm + 1e-6)) if limit else 1.0
        for (name, weight), gradient in zip(self.trained.items(), gradients, strict=True):
            if gradient is not None:
                self._update(name, weight, gradient * factor, rate, number + 1)
        self.log.append({"loss": float(loss.detach()), "grad_norm": norm, "learning_rate": rate})

    @torch.no_grad()
    def _update(self, name: str, weight: torch.Tensor, gradient: torch.Tensor, rate: float, step: int) -> None:
        how, (first, second) = self.how, self.state[name]
        decays = weight.ndim >= 2
        rate = rate * how.times if how.faster and how.faster in name else rate
        if how.decay_by_name:
            decays = not NEVER_DECAY.search(name) and name not in self.norms
        if how.sgd:
            weight.sub_(rate * (gradient + how.weight_decay * decays * weight))
            return
        weight.mul_(1 - rate * how.weight_decay * decays)
        first.mul_(how.beta1).add_((1 - how.beta1) * gradient)
        second.mul_(how.beta2).add_((1 - how.beta2) * gradient.square())
        mean, square = first / (1 - how.beta1**step), second / (1 - how.beta2**step)
        weight.sub_(rate * mean / (square.sqrt() + how.epsilon))

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        how = self.how
        if step < how.warmup:
            return how.learning_rate * step / how.warmup
        done, left = step - how.warmup, max(1, self.steps - how.warmup)
        shape = {"constant": 1.0, "linear": 1 - done / left, "cosine": (1 + math.cos(math.pi * done / left)) / 2}
        return how.learning_rate * shape[how.schedule]
