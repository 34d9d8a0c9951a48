"""Means with 95 % intervals."""

from __future__ import annotations

import functools
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


@functools.lru_cache(maxsize=16)
def draws(number: int) -> NDArray[np.int64]:
    """Return the rows that make `REPS` resamples of so many, drawn with replacement, seed 0."""
    return (np.random.default_rng(0).random((REPS, number)) * number).astype(np.int64)


@functools.lru_cache(maxsize=4096)  # curves of many evaluations have the same rates again and again
def bootstrap_limits(values: tuple[float, ...]) -> tuple[float, float]:
    """Return the percentile interval of the mean of some values."""
    if min(values) == max(values):
        return values[0], values[0]
    low, high = np.percentile(np.asarray(values)[draws(len(values))].mean(axis=1), TAILS)
    return float(low), float(high)


def success_interval(rates: Sequence[float], episodes: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean success over seeds.

    It is the percentile interval of a bootstrap over the seeds, and at least as wide as Wilson's
    of all their episodes: seeds that agree say nothing about the episodes that were not played.

    Args:
        rates: Success of each seed, from 0 to 1.
        episodes: Of all seeds together.
    """
    low, high = bootstrap_limits(tuple(map(float, rates)))
    return widened(float(np.mean(rates)), low, high, episodes)


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
