"""Means with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964
"""Quantile of the normal distribution that 2.5 % exceed."""


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a probability, within [0, 1]."""
    share, weight = successes / trials, Z**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def student_quantile(freedom: int) -> float:
    """Return the value that Student's t exceeds in absolute size with probability 5 %.

    With t = sqrt(freedom) tan(angle), the density of |t| is proportional to cos(angle)^(freedom-1).
    """
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angle) ** (freedom - 1)
    total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(np.interp(0.95, total / total[-1], angle))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % Student interval of the mean of two or more values."""
    half = student_quantile(len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)
