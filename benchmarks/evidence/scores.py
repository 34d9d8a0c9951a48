"""What a run of an experiment is judged by."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from trqam_fast.errors import UsageError
from trqam_fast.report.collect import FAILED, Result
from trqam_fast.report.find import collect

LAST = 3
"""Evaluations that make the score."""


class Score(NamedTuple):
    """One run.

    Attributes:
        score: Mean success over the last three evaluations, 0 to 1; 0 if it failed.
        final: Success at the end.
        dip: Deepest fall below its own best so far, once half of its best was reached.
        area: Mean success over all evaluations.
        path_kl: Mean over the last tenth of its rows; NaN without one.
    """

    score: float
    final: float
    dip: float
    area: float
    path_kl: float


def score_of(result: Result) -> Score:
    """Judge one run; its curve holds evaluations after fine-tuning began."""
    success = np.array([value for step, value in result.curve if step > 0])
    if result.status != "done" or len(success) == 0:
        return Score(0.0, 0.0, 0.0, 0.0, float("nan"))
    reached = int(np.argmax(success >= 0.5 * success.max()))
    best = np.maximum.accumulate(success)
    dip = float((best - success)[reached:].max())
    kl = [value for track in result.tracking for value in track.path_kl]
    tail = kl[-max(1, len(kl) // 10) :]
    path_kl = float(np.mean(tail)) if kl else float("nan")
    return Score(
        float(success[-LAST:].mean()), float(success[-1]), dip, float(success.mean()), path_kl
    )


def read_scores(folder: Path) -> dict[str, dict[str, Score]]:
    """Return the scores of a sweep's fine-tuning runs by method and seed.

    Raises:
        UsageError: one is not over, or there is none.
    """
    scores: dict[str, dict[str, Score]] = {}
    for result in collect([folder])[0]:
        if result.method is not None and result.algorithm.fine_tunes:
            if result.status not in ("done", *FAILED):
                raise UsageError(
                    f"{folder}: seed {result.seed} of {result.method} is {result.status}; run the "
                    "experiment to its end, without --read-only"
                )
            scores.setdefault(result.method, {})[result.seed] = score_of(result)
    return scores
