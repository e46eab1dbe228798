"""How the next token is chosen from logits.

    repetition penalty -> temperature -> top-k -> top-p -> min-p -> one draw

Order and meaning are those of transformers' `generate`; the tests compare with it. A draw inverts the cumulative
distribution at one uniform number, so a row's choice does not depend on the other rows.

Sources: top-k, Fan et al. 2018 (arXiv:1805.04833); top-p, Holtzman et al. 2019 (arXiv:1904.09751); min-p, Nguyen et al.
2024 (arXiv:2407.01082); repetition penalty, Keskar et al. 2019 (arXiv:1909.05858).

Shapes: N rows, V vocabulary, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from honed.errors import RecipeError

CANDIDATES = 1024  # top-p looks among this many top tokens first, and sorts the whole vocabulary only if necessary


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_k: keep only the k most likely tokens; 0 for all.
        top_p: keep only the smallest set of most likely tokens with at least this total probability; 1 for all.
        min_p: keep only tokens with at least this fraction of the highest probability; 0 for all.
        repetition_penalty: divides the logits of tokens in prompt and answer (multiplies negative ones); 1 for none.

    Raises:
        RecipeError: a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        rules = (
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise RecipeError(f"{name} is {getattr(self, name)}.", fix=f"it must be {rule}")


def choose(
    logits_NV: torch.Tensor, sampling: Sampling, seen: Sequence[Sequence[int]], uniforms: Sequence[float]
) -> list[int]:
    """The next token of each row.

    Args:
        logits_NV: any floating dtype; compared in float32, like transformers.
        seen: the ids in each row's prompt and answer so far; used only with a repetition penalty.
        uniforms: one number in [0, 1) per row; unused at temperature 0.
    """
    logits_NV = logits_NV.float()
    if sampling.repetition_penalty != 1:
        logits_NV = penalised(logits_NV, sampling.repetition_penalty, seen)
    if sampling.temperature == 0:
        return list(logits_NV.argmax(-1).tolist())
    probabilities_NC, tokens_NC = candidates(logits_NV, sampling)
    return draw(probabilities_NC, tokens_NC, uniforms)


def penalised(logits_NV: torch.Tensor, penalty: float, seen: Sequence[Sequence[int]]) -> torch.Tensor:
    """A copy in which seen tokens are less likely."""
    changed_NV = logits_NV.clone()
    for row, ids in zip(changed_NV, seen, strict=True):
        found = torch.tensor(sorted(set(ids)), device=row.device)
        values = row[found]
        row[found] = torch.where(values < 0, values * penalty, values / penalty)
    return changed_NV


def candidates(logits_NV: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates for the draw: probabilities float32 (N, C), 0 for excluded tokens, and ids int64 (N, C)."""
    scores_NV = logits_NV / sampling.temperature
    if not sampling.top_k and sampling.top_p == 1:  # no sorting needed
        probabilities_NV = torch.softmax(scores_NV, -1)
        everything = torch.arange(scores_NV.shape[-1], device=scores_NV.device).expand_as(scores_NV)
        return _at_least(probabilities_NV, sampling.min_p), everything
    scores_NC, tokens_NC, total_N1 = _likeliest(scores_NV, sampling)
    probabilities_NC = torch.exp(scores_NC - total_N1)
    if sampling.top_p < 1:
        before_NC = probabilities_NC.cumsum(-1) - probabilities_NC
        probabilities_NC = probabilities_NC.masked_fill(before_NC >= sampling.top_p, 0.0)
        probabilities_NC[:, 0] = torch.exp(scores_NC[:, 0] - total_N1[:, 0])  # always keep the most likely
    return _at_least(probabilities_NC, sampling.min_p), tokens_NC


def draw(probabilities_NC: torch.Tensor, tokens_NC: torch.Tensor, uniforms: Sequence[float]) -> list[int]:
    """The token of each row at which the cumulative probability passes `uniform * total`."""
    # float64: the rounding errors of a float32 sum exceed the rarest tokens' probabilities; MPS has no float64
    exact_NC = (probabilities_NC.cpu() if probabilities_NC.device.type == "mps" else probabilities_NC).double()
    sums_NC = exact_NC.cumsum(-1)
    total_N1 = sums_NC[:, -1:]
    aims_N1 = torch.tensor(uniforms, dtype=torch.float64, device=sums_NC.device)[:, None] * total_N1
    below_N1 = torch.nextafter(total_N1, torch.zeros_like(total_N1))  # rounding may make the aim equal the total
    places_N1 = torch.searchsorted(sums_NC, torch.minimum(aims_N1, below_N1), right=True).to(tokens_NC.device)
    return list(tokens_NC.gather(-1, places_N1).squeeze(-1).tolist())


def _likeliest(scores_NV: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores and ids of the tokens for top-p, most likely first, and the log-sum-exp for their normalisation."""
    size = scores_NV.shape[-1]
    if sampling.top_k:
        scores_NC, tokens_NC = scores_NV.topk(min(sampling.top_k, size))
        return scores_NC, tokens_NC, scores_NC.logsumexp(-1, keepdim=True)
    total_N1 = scores_NV.logsumexp(-1, keepdim=True)
    scores_NC, tokens_NC = scores_NV.topk(min(CANDIDATES, size))
    if bool((torch.exp(scores_NC - total_N1).sum(-1) < sampling.top_p).any()):  # not enough: sort all
        scores_NC, tokens_NC = scores_NV.sort(descending=True)
    return scores_NC, tokens_NC, total_N1


def _at_least(probabilities_NC: torch.Tensor, share: float) -> torch.Tensor:
    if not share:
        return probabilities_NC
    return probabilities_NC.masked_fill(probabilities_NC < share * probabilities_NC.amax(-1, keepdim=True), 0.0)
