"""Comparisons of two methods: paired over cells and seeds, or of two groups of seeds."""

from __future__ import annotations

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np

DRAWS = 10_000
MOST_SPLITS = 20_000
"""Up to so many ways of splitting two groups are all gone through."""


class Difference(NamedTuple):
    """Mean of paired differences with its interval and p value.

    Attributes:
        mean: Over cells of the mean over seeds, in the unit of the scores.
        low, high: 95 % interval of the hierarchical bootstrap.
        p: Two-sided, of the sign-flip test on pairs.
        pairs: Number of pairs.
        detectable: Difference that these pairs would have shown in four of five cases (2.8
            standard errors); None where a cell has a single pair.
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int
    detectable: float | None


def compare(cells: list[np.ndarray], seed: int = 0) -> Difference:
    """Compare two methods from the paired differences of each cell.

    Args:
        cells: One array `[n]` for each cell, first method less second, a value for each seed.
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    mean = float(np.mean([np.mean(cell) for cell in cells]))
    chosen = rng.integers(len(cells), size=(DRAWS, len(cells)))
    means = np.empty(chosen.shape)
    for index, cell in enumerate(cells):
        drawn = rng.choice(cell, size=(np.count_nonzero(chosen == index), len(cell)))
        means[chosen == index] = drawn.mean(axis=1)
    samples = means.mean(axis=1)
    signs = [rng.choice((-1.0, 1.0), size=(DRAWS, len(cell))) for cell in cells]
    flips = [(s * cell).mean(axis=1) for s, cell in zip(signs, cells, strict=True)]
    flipped = np.mean(flips, axis=0)
    extreme = np.count_nonzero(np.abs(flipped) >= abs(mean) - 1e-12)
    low, high = np.percentile(samples, [2.5, 97.5])
    detectable = None
    if min(map(len, cells)) > 1:
        variance = np.mean([np.var(cell, ddof=1) / len(cell) for cell in cells]) / len(cells)
        detectable = float(2.8 * np.sqrt(variance))
    return Difference(
        mean, float(low), float(high), (extreme + 1) / (DRAWS + 1), sum(map(len, cells)), detectable
    )


class Unpaired(NamedTuple):
    """Difference of the means of two groups.

    Attributes:
        mean: First less second.
        low, high: 95 % interval of a bootstrap within each group.
        p: Two-sided, of the permutation test.
        least_p: The least that groups of this size can give.
        sizes: Of the groups.
    """

    mean: float
    low: float
    high: float
    p: float
    least_p: float
    sizes: tuple[int, int]


def compare_unpaired(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Unpaired:
    """Compare two independent groups, `[n]` and `[m]`.

    The test goes through all splits of the n + m values, or through random ones where there are
    too many.

    Args:
        first, second: Values of the groups.
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    n, m = len(first), len(second)
    mean = float(np.mean(first) - np.mean(second))
    pooled, splits = np.concatenate([first, second]), math.comb(n + m, n)
    exact = splits <= MOST_SPLITS
    if exact:
        chosen = np.array(list(combinations(range(n + m), n)))
    else:
        chosen = rng.permuted(np.tile(np.arange(n + m), (DRAWS, 1)), axis=1)[:, :n]
    sums = pooled[chosen].sum(axis=1)
    gaps = sums / n - (pooled.sum() - sums) / m
    extreme = np.count_nonzero(np.abs(gaps) >= abs(mean) - 1e-12)
    # Groups of one size can be exchanged, which is as extreme.
    alike = 2 if n == m else 1
    if exact:
        p, least = extreme / splits, alike / splits
    else:
        p, least = (extreme + 1) / (DRAWS + 1), 1 / (DRAWS + 1)
    means = [x[rng.integers(len(x), size=(DRAWS, len(x)))].mean(axis=1) for x in (first, second)]
    low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
    return Unpaired(mean, float(low), float(high), p, least, (n, m))
