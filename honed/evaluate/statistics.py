"""Ratios over rows or prompts, and their confidence intervals by the paired percentile bootstrap.

Shapes: N units (rows, prompts, tasks), C columns, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
COUNTS_AT_A_TIME = 1 << 22  # int64 counts in memory: 32 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The sum of values over units divided by the sum of their weights: a loss per token, a share, a mean.

    Attributes:
        sums_N: float64; for example the summed loss of a unit's tokens, or 1 if an answer stopped.
        weights_N: float64; for example the number of tokens, or 1. A unit with weight 0 does not count.
    """

    sums_N: np.ndarray
    weights_N: np.ndarray

    @classmethod
    def of(cls, values: Sequence[float | bool | None]) -> Ratio:
        """The mean of these values; None for a unit without a value."""
        there = np.array([value is not None for value in values], dtype=np.float64)
        return cls(sums_N=np.array([value or 0.0 for value in values], dtype=np.float64), weights_N=there)

    @property
    def value(self) -> float:
        """The ratio; NaN if the total weight is 0."""
        weight = self.weights_N.sum()
        return float(self.sums_N.sum() / weight) if weight else float("nan")


def interval(
    tuned: Ratio, base: Ratio | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Bootstrap 95% confidence interval of a ratio, or of the difference tuned - base on the same units.

    Whole units are resampled, because the tokens of one row are not independent. Both models are compared on the same
    resamples, so that a row's difficulty for both cancels out. Percentile intervals (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, chapter 13) are too narrow for a handful of units.

    Returns:
        The interval's bounds; None if fewer than two units count.
    """
    columns = [tuned.sums_N, tuned.weights_N, *([base.sums_N, base.weights_N] if base else [])]
    values_NC = np.stack(columns, axis=1)
    values_NC = values_NC[(values_NC[:, 1::2] > 0).any(axis=1)]
    if len(values_NC) < 2:
        return None
    sums_RC = resampled_sums(values_NC, resamples=resamples, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may miss all units of one side
        ratios_RC = sums_RC[:, 0::2] / sums_RC[:, 1::2]
    found_R = ratios_RC[:, 0] - ratios_RC[:, 1] if base else ratios_RC[:, 0]
    found_R = found_R[np.isfinite(found_R)]
    if not len(found_R):
        return None
    low, high = np.quantile(found_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def resampled_sums(values_NC: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Column sums over N rows drawn with replacement, float64 (R, C); the seed determines the draws."""
    rng = np.random.default_rng(seed)
    units = len(values_NC)
    share_N = np.full(units, 1.0 / units)
    at_a_time = max(1, COUNTS_AT_A_TIME // units)
    parts = []
    for start in range(0, resamples, at_a_time):
        counts_rN = rng.multinomial(units, share_N, size=min(at_a_time, resamples - start))
        parts.append(counts_rN @ values_NC)
    return np.concatenate(parts)
