"""Means with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

REPS = 5_000
"""Bootstrap resamples of an interval."""
TAILS = (2.5, 97.5)
"""Percentiles at its ends."""
Z = NormalDist().inv_cdf(0.975)
"""Quantile of the normal distribution that 2.5 % exceed."""


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a probability, within [0, 1].

    `scipy.stats.binomtest` has the same numbers, but takes 1.9 ms for each, and 1.7 s to import.
    """
    share, weight = successes / trials, Z**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_means(values: Sequence[float], reps: int = REPS) -> NDArray[np.float64]:
    """Return the means of `reps` resamples of some values, drawn with replacement, seed 0."""
    uniform = np.random.default_rng(0).random((reps, len(values)))
    return np.asarray(values)[(uniform * len(values)).astype(np.int64)].mean(axis=1)


def success_interval(rates: Sequence[float], episodes: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean success over seeds.

    It is the percentile interval of a bootstrap over the seeds, and at least as wide as Wilson's
    of all their episodes: seeds that agree say nothing about the episodes that were not played.

    Args:
        rates: Success of each seed, from 0 to 1.
        episodes: Of all seeds together.
    """
    low, high = np.percentile(bootstrap_means(rates), TAILS)
    return widened(float(np.mean(rates)), float(low), float(high), episodes)


def widened(share: float, low: float, high: float, trials: int) -> tuple[float, float]:
    """Return an interval of a share, at least as wide as Wilson's of so many trials.

    Limits that are NaN are none; without trials the interval stays as it is.
    """
    if trials < 1 or math.isnan(share):
        return low, high
    least, most = wilson_interval(share * trials, trials)
    return min(least, math.inf if math.isnan(low) else low), max(
        most, -math.inf if math.isnan(high) else high
    )
