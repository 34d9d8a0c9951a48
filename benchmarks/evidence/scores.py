"""What a run of an experiment is judged by."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trqam_fast.report.collect import Result

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


def by_method(results: Iterable[Result]) -> dict[str, dict[str, Score]]:
    """Return the scores of finished runs by method and seed; pretraining is left out."""
    scores: dict[str, dict[str, Score]] = {}
    for result in results:
        if result.method is not None and result.algorithm.fine_tunes:
            scores.setdefault(result.method, {})[result.seed] = score_of(result)
    return scores


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows that have the same columns."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
