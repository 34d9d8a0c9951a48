"""What a run of an experiment is judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trqam_fast.errors import UsageError
from trqam_fast.evaluation.statistics import success_interval
from trqam_fast.report.collect import FAILED, Result
from trqam_fast.report.find import collect
from trqam_fast.runs.read import read_run
from trqam_fast.text import count_of

LAST = 3
"""Evaluations that make the score."""
MECHANISM = ("path_kl", "adjoint_gain", "value_gap")
"""Columns of the log that a score has."""
LOGGED = (*MECHANISM, "lam")
"""Those that curves have."""


class Score(NamedTuple):
    """One run.

    Attributes:
        score: Mean success over the last three evaluations, 0 to 1; 0 if it failed.
        final: Success at the end.
        dip: Deepest fall below its own best so far, once half of its best was reached.
        area: Mean success over all evaluations.
        path_kl, adjoint_gain, value_gap: Mean over the last tenth of its rows; NaN without one.
        episodes: That the score is made of; none if it failed.
    """

    score: float
    final: float
    dip: float
    area: float
    path_kl: float = math.nan
    adjoint_gain: float = math.nan
    value_gap: float = math.nan
    episodes: int = 0


FAILURE = Score(0.0, 0.0, 0.0, 0.0)


@dataclass
class Scores:
    """The fine-tuning runs of a sweep that are over, and those that are not.

    Attributes:
        runs: Scores by method and seed.
        curves: Likewise, by column and "success", steps since fine-tuning began and values.
        waiting: Runs that are planned and not over.
        failed: Runs that failed or diverged; they are among `runs`, as 0.
    """

    runs: dict[str, dict[str, Score]] = field(default_factory=dict)
    curves: dict[str, dict[str, dict[str, list[tuple[int, float]]]]] = field(default_factory=dict)
    waiting: int = 0
    failed: int = 0

    @property
    def over(self) -> int:
        """Number of runs that are over."""
        return sum(map(len, self.runs.values()))

    def progress(self, planned: int | None = None) -> str:
        """Return in words how far the runs are, of as many as are planned."""
        planned = self.over + self.waiting if planned is None else planned
        words = f"{self.over} of {count_of(planned, 'run')}"
        return f"{words}, {self.failed} failed" if self.failed else words


def score_of(result: Result, curves: dict[str, list[tuple[int, float]]]) -> Score:
    """Judge one run.

    Args:
        result: What became of it.
        curves: What it logged; see `Scores`.
    """
    success = np.array([value for step, value in curves["success"] if step > 0])
    if result.status != "done" or len(success) == 0:
        return FAILURE
    reached = int(np.argmax(success >= 0.5 * success.max()))
    best = np.maximum.accumulate(success)
    dip = float((best - success)[reached:].max())
    ends = []
    for column in MECHANISM:
        values = [value for _, value in curves.get(column, ())]
        ends.append(float(np.mean(values[-max(1, len(values) // 10) :])) if values else math.nan)
    whole = float(success[-LAST:].mean()), float(success[-1]), dip, float(success.mean())
    return Score(*whole, *ends, episodes=result.episodes * len(success[-LAST:]))


def read_scores(folder: Path) -> Scores:
    """Return the scores of a sweep's fine-tuning runs that are over, none before it began."""
    found = Scores()
    if not (folder / "plan.json").exists():
        return found
    logs: dict[str, dict[str, dict[str, list[tuple[int, float]]]]] = {}
    for result in collect([folder])[0]:
        if result.method is None or not result.algorithm.fine_tunes:
            continue
        if result.status not in ("done", *FAILED):
            found.waiting += 1
            continue
        found.failed += result.status in FAILED
        if result.folder not in logs:
            logs[result.folder] = read_mechanism(Path(result.folder))
        curves = logs[result.folder].get(result.seed, {}) | {"success": result.curve}
        found.runs.setdefault(result.method, {})[result.seed] = score_of(result, curves)
        found.curves.setdefault(result.method, {})[result.seed] = curves
    return found


def read_mechanism(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return what a run logged of `LOGGED` in fine-tuning, by seed and column."""
    try:
        rows = read_run(folder, only=frozenset(LOGGED)).metrics
    except UsageError:  # it failed before it began
        return {}
    begin = max((row.step for row in rows if row.stage == "pretrain"), default=0)
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        for column, value in row.values.items():
            if row.stage != "pretrain" and math.isfinite(value):
                points = found.setdefault(row.seed, {}).setdefault(column, [])
                points.append((row.step - begin, value))
    return found


def summary(scores: list[Score]) -> dict[str, object]:
    """Return means over some seeds, each seed's score, and the 95 % interval of their mean."""
    means = {}
    for name in Score._fields:
        values = [getattr(score, name) for score in scores]
        if not np.isnan(values).all():
            means[name] = float(np.nanmean(values))
    rates = [score.score for score in scores]
    interval = success_interval(rates, sum(score.episodes for score in scores))
    return means | {"by_seed": rates, "interval": interval}


def differences(first: dict[str, Score], second: dict[str, Score], name: str = "score"):
    """Return the differences of a quantity, `[n]`, over the seeds that both have."""
    seeds = [seed for seed in first if seed in second]
    return np.array([getattr(first[seed], name) - getattr(second[seed], name) for seed in seeds])
