"""E2 and E3: one sweep each, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import statistics
from benchmarks.evidence.e1 import differences, summary
from benchmarks.evidence.scores import Score, read_scores
from trqam_fast.sweep.__main__ import main as sweep

FOLDER = Path(__file__).parents[2] / "sweeps"


def run(name: str, out: Path, flags: list[str]) -> None:
    """Run the sweep of an experiment, or go on with it."""
    sweep([str(FOLDER / f"{name}.toml"), "--out", str(out), *flags])


def analyse_e2(out: Path) -> dict[str, Any]:
    """Return means over the seeds of each method."""
    scores = read_scores(out)
    return {"methods": {method: summary(list(runs.values())) for method, runs in scores.items()}}


def analyse_e3(out: Path) -> dict[str, Any]:
    """Return means of each variant, and paired differences to the paper's start by budget."""
    scores = read_scores(out)
    found: dict[str, Any] = {"methods": {}, "differences": {}}
    for method, runs in scores.items():
        found["methods"][method] = summary(list(runs.values()))
        variant, _, setting = method.removeprefix("TRQAM ").partition(" ")
        paper = scores.get(f"TRQAM paper {setting}")
        if variant != "paper" and paper is not None:
            pairs = [differences(runs, paper)]
            found["differences"][method] = statistics.compare(pairs)._asdict()
            found["differences"][method]["area"] = float(np.mean(areas(runs, paper)))
    return found


def areas(first: dict[str, Score], second: dict[str, Score]) -> np.ndarray:
    """Return the differences of the means over all evaluations, seed by seed."""
    return np.array([first[seed].area - second[seed].area for seed in first if seed in second])
