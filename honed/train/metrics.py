"""Training metrics, accumulated on the device and read only when they are logged."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from honed.ops.linear_cross_entropy import TokenScores

Mark = tuple[int, int, int, int, torch.Tensor, torch.Tensor]  # see `StepMetrics.mark`


class StepMetrics:
    """Accumulates metrics between logs. `add` never synchronises with the device; `read` does so once.

    Args:
        over_ranks: sums numbers over all ranks, which must all call `read`; None with one rank.
    """

    def __init__(self, device: torch.device, over_ranks: Callable[..., list[float]] | None = None) -> None:
        self.device = device
        self._over_ranks: Callable[..., list[float]] = over_ranks or (lambda *values: list(values))
        self.num_tokens = 0
        self._reset()

    def _reset(self) -> None:
        self._tokens = self._trained = self._scored = self._aux_tokens = 0
        self._sums = torch.zeros(2, device=self.device)  # of entropies and of correct predictions
        self._aux_sum = torch.zeros((), device=self.device)
        self._since = time.perf_counter()

    def add(self, scores: TokenScores, *, tokens: int, aux_loss: torch.Tensor | None = None) -> None:
        """Counts one micro-batch.

        Args:
            scores: those of its trained tokens.
            tokens: positions that the model computed, without padding.
            aux_loss: the auxiliary loss of a mixture-of-experts model, a scalar.
        """
        self.count(tokens=tokens, trained=scores.nll_N.numel())
        if scores.entropy_N is not None and scores.correct_N is not None:
            both = torch.stack([scores.entropy_N.sum(), scores.correct_N.sum()])
            self._sums = self._sums + both.to(self._sums)  # not in place: a mark refers to the old tensor
            self._scored += scores.nll_N.numel()
        if aux_loss is not None:
            self._aux_sum = self._aux_sum + aux_loss.detach() * scores.nll_N.numel()
            self._aux_tokens += scores.nll_N.numel()

    def count(self, *, tokens: int, trained: int) -> None:
        """Counts one micro-batch with unknown scores, because the loss is custom."""
        self._tokens += tokens
        self._trained += trained

    def read(self) -> dict[str, float]:
        """Returns means over all ranks, the run's num_tokens, tokens per second, this process's memory in GB; resets.

        Custom batches may not count tokens or have labels; the speeds are then left out.
        """
        seconds = max(time.perf_counter() - self._since, 1e-9)
        tokens, trained, scored, aux_tokens, entropy, correct, aux_sum = self._totals()
        self.num_tokens += int(tokens)
        logs: dict[str, float] = {
            "num_tokens": float(self.num_tokens),
            "memory_gb": memory_gb(self.device),
        }
        if tokens:
            logs["tokens_per_second"] = tokens / seconds
        if trained:
            logs["trained_tokens_per_second"] = trained / seconds
        if scored:
            logs |= {"mean_token_accuracy": correct / scored, "entropy": entropy / scored}
        if aux_tokens:
            logs["aux_loss"] = aux_sum / aux_tokens
        self._reset()
        return logs

    def _totals(self) -> list[float]:
        counts = (self._tokens, self._trained, self._scored, self._aux_tokens)
        return self._over_ranks(*counts, *torch.cat([self._sums, self._aux_sum.reshape(1)]).tolist())

    def state(self) -> dict[str, Any]:
        """Returns the counts since the last `read` and of the whole run as JSON, for `restore`."""
        sums: list[float] = self._sums.tolist()
        counts = {"tokens": self._tokens, "trained": self._trained, "scored": self._scored}
        balance = {"aux_tokens": self._aux_tokens, "aux_sum": float(self._aux_sum)}
        return {"num_tokens": self.num_tokens, "sums": sums, **counts, **balance}

    def restore(self, state: dict[str, Any]) -> None:
        self.num_tokens = state["num_tokens"]
        self._sums.copy_(torch.tensor(state["sums"]))
        self._tokens, self._trained, self._scored = state["tokens"], state["trained"], state["scored"]
        self._aux_tokens = state.get("aux_tokens", 0)  # not in older checkpoints
        self._aux_sum.fill_(state.get("aux_sum", 0.0))

    def mark(self) -> Mark:
        """Returns the counts so far, for `back_to`."""
        return self._tokens, self._trained, self._scored, self._aux_tokens, self._sums, self._aux_sum

    def back_to(self, mark: Mark) -> None:
        """Discards what was counted since `mark`."""
        self._tokens, self._trained, self._scored, self._aux_tokens, self._sums, self._aux_sum = mark

    def start_clock(self) -> None:
        """Excludes the time since the last `read` (evaluation, saving) from tokens per second."""
        self._since = time.perf_counter()


def memory_gb(device: torch.device) -> float:
    """Returns the peak memory so far in GB (10^9 bytes): the GPU's if there is one, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 1e9
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def describe(logs: dict[str, float]) -> str:
    """Formats metrics: 'loss 0.512  lr 1.8e-03  612 tok/s (301 trained)'."""
    parts = [f"loss {logs['loss']:.4f}"]
    if "learning_rate" in logs:
        parts.append(f"lr {logs['learning_rate']:.1e}")
    if "tokens_per_second" in logs:
        trained = logs.get("trained_tokens_per_second")
        of_them = "" if trained is None else f" ({trained:.0f} trained)"
        parts.append(f"{logs['tokens_per_second']:.0f} tok/s{of_them}")
    return "  ".join(parts)
