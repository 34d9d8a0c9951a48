"""Statistics over many runs, in the sense of Agarwal et al. 2021 (NeurIPS, arXiv 2108.13264).

Scores of one method are ``[..., seeds, tasks]``, NaN where a run is missing; the leading axes, if
any, are bootstrap resamples. A missing run is left out, and a task without any run too: the others
then speak for fewer runs or tasks, which whoever shows the numbers has to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trqam_fast.evaluation.statistics import REPS, TAILS, widened

Scores = NDArray[np.float64]
Statistic = Callable[..., NDArray[np.float64]]

ELEMENTS_AT_ONCE = 4_000_000


class Estimate(NamedTuple):
    """A statistic between the limits of its interval, NaN where there is none."""

    value: float
    low: float
    high: float


def at_least(found: Estimate, trials: int) -> Estimate:
    """Return an estimate of a share with an interval not narrower than Wilson's of its trials."""
    return Estimate(found.value, *widened(*found, trials))


def counts(scores: Scores) -> NDArray[np.int64]:
    """Return the number of runs of each task, ``[..., tasks]``."""
    return (~np.isnan(scores)).sum(axis=-2)


def task_means(scores: Scores) -> NDArray[np.float64]:
    """Return the mean over each task's runs, ``[..., tasks]``, NaN where there is none."""
    number = counts(scores)
    sums = np.nansum(scores, axis=-2)
    return np.divide(sums, number, out=np.full(sums.shape, math.nan), where=number > 0)


def mean(scores: Scores) -> NDArray[np.float64]:
    """Return the mean over tasks of the mean over each task's runs."""
    means = task_means(scores)
    return task_means(means[..., None])[..., 0]


def iqm(scores: Scores) -> NDArray[np.float64]:
    """Return the interquartile mean: that of the middle half of all runs of all tasks.

    A quarter of the runs, rounded down, is cut off at either end.

    Raises:
        ValueError: resamples with different numbers of runs.
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)  # NaN comes last
    numbers = np.unique((~np.isnan(flat)).sum(axis=-1))
    if len(numbers) != 1:
        raise ValueError(f"resamples have {numbers} runs; they must have one number")
    number = int(numbers[0])
    if number == 0:
        return np.full(flat.shape[:-1], math.nan)
    cut = number // 4
    return flat[..., cut : number - cut].mean(axis=-1)


def improvement(x: Scores, y: Scores) -> NDArray[np.float64]:
    """Return P(X > Y): the share of pairs of a task's runs that X wins, averaged over tasks.

    A tie is half a win (Mann and Whitney's U over the number of pairs). Only tasks that both
    methods have a run of count; NaN if there is none.
    """
    first, second = x[..., :, None, :], y[..., None, :, :]
    wins = (first > second).sum(axis=(-3, -2)) + 0.5 * (first == second).sum(axis=(-3, -2))
    pairs = counts(x) * counts(y)
    shares = np.divide(wins, pairs, out=np.full(wins.shape, math.nan), where=pairs > 0)
    return task_means(shares[..., None])[..., 0]


def profile(scores: Scores, taus: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the performance profile: the share of runs with a score above each of `taus`."""
    number = counts(scores).sum(axis=-1)
    above = np.stack([(scores > tau).sum(axis=(-2, -1)) for tau in taus], axis=-1)
    return np.where(number[..., None] > 0, above / np.maximum(number, 1)[..., None], math.nan)


def resample(scores: Scores, indices: NDArray[np.int64]) -> Scores:
    """Return the runs that `indices` name, each among those that its task has.

    Args:
        scores: ``[seeds, tasks]``.
        indices: ``[reps, seeds, tasks]``; of a task with n runs the first n rows count, and name
            a run from 0 to n - 1 in the order of the seeds.
    """
    number = counts(scores)
    order = np.argsort(np.isnan(scores), axis=0, kind="stable")
    present = np.take_along_axis(scores, order, axis=0)
    drawn = present[indices, np.arange(scores.shape[1])]
    return np.where(np.arange(scores.shape[0])[:, None] < number, drawn, math.nan)


def bootstrap(
    statistic: Statistic, *scores: Scores, reps: int = REPS, seed: int = 0
) -> NDArray[np.float64]:
    """Return a statistic of stratified resamples: the runs of each task are drawn with replacement.

    Args:
        statistic: Takes as many arrays as `scores`, with a leading axis of resamples.
        scores: Those of each method, ``[seeds, tasks]``; each is resampled on its own.
        reps: Number of resamples.
        seed: Of the generator.

    Returns:
        ``[reps, ...]``.
    """
    generator = np.random.default_rng(seed)
    together = math.prod(array.shape[0] for array in scores) * scores[0].shape[1]
    step = max(1, ELEMENTS_AT_ONCE // max(1, together))
    found = []
    for start in range(0, reps, step):
        size = min(step, reps - start)
        drawn = []
        for array in scores:
            uniform = generator.random((size, *array.shape))
            drawn.append(resample(array, (uniform * counts(array)).astype(np.int64)))
        found.append(statistic(*drawn))
    return np.concatenate(found)


def limits(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 95 % interval of bootstrap samples ``[reps, ...]``, as ``[2, ...]``."""
    return np.percentile(samples, TAILS, axis=0)


def estimates(
    statistics: Sequence[Statistic], *scores: Scores, reps: int = REPS, seed: int = 0
) -> list[Estimate]:
    """Return numbers with their 95 % intervals, all from the same resamples.

    There is no interval where no task has two runs of any method: resamples are all the same then.
    """

    def stacked(*drawn: Scores) -> NDArray[np.float64]:
        return np.stack([statistic(*drawn) for statistic in statistics], axis=-1)

    values = stacked(*scores)
    lows = highs = np.full(len(values), math.nan)
    if any(counts(array).max(initial=0) > 1 for array in scores):
        lows, highs = limits(bootstrap(stacked, *scores, reps=reps, seed=seed))
    return [Estimate(*map(float, row)) for row in zip(values, lows, highs, strict=True)]
