"""Paired comparisons over cells and seeds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

DRAWS = 10_000


class Difference(NamedTuple):
    """Mean of paired differences with its interval and p value.

    Attributes:
        mean: Over cells of the mean over seeds, in the unit of the scores.
        low, high: 95 % interval of the hierarchical bootstrap.
        p: Two-sided, of the sign-flip test on pairs.
        pairs: Number of pairs.
        detectable: Difference that these pairs would have shown in four of five cases (2.8
            standard errors).
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int
    detectable: float


def compare(cells: list[np.ndarray], seed: int = 0) -> Difference:
    """Compare two methods from the paired differences of each cell.

    Args:
        cells: One array `[n]` for each cell, first method less second, a value for each seed.
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    mean = float(np.mean([np.mean(cell) for cell in cells]))
    samples = np.empty(DRAWS)
    for draw in range(DRAWS):
        chosen = rng.integers(len(cells), size=len(cells)) if len(cells) > 1 else [0]
        resampled = [rng.choice(cells[index], size=len(cells[index])) for index in chosen]
        samples[draw] = np.mean([np.mean(cell) for cell in resampled])
    flipped = np.empty(DRAWS)
    for draw in range(DRAWS):
        signs = [rng.choice((-1.0, 1.0), size=len(cell)) for cell in cells]
        flipped[draw] = np.mean([np.mean(s * c) for s, c in zip(signs, cells, strict=True)])
    extreme = np.count_nonzero(np.abs(flipped) >= abs(mean) - 1e-12)
    low, high = np.percentile(samples, [2.5, 97.5])
    variance = np.mean([np.var(cell, ddof=1) / len(cell) for cell in cells]) / len(cells)
    return Difference(
        mean, float(low), float(high), (extreme + 1) / (DRAWS + 1),
        sum(map(len, cells)), float(2.8 * np.sqrt(variance)),
    )  # fmt: skip
