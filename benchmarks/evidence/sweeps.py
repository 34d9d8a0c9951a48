"""E2, E3 and E4: one sweep each, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import statistics
from benchmarks.evidence.scores import LOGGED, Scores, differences, read_scores, summary
from trqam_fast.sweep.__main__ import main as sweep
from trqam_fast.sweep.plan import make_plan
from trqam_fast.sweep.spec import Spec, read_spec

FOLDER = Path(__file__).parents[2] / "sweeps"


def run(name: str, out: Path, flags: list[str]) -> None:
    """Run the sweep of an experiment, or go on with it."""
    sweep([str(FOLDER / f"{name}.toml"), "--out", str(out), *flags])


def plans(name: str, out: Path) -> list[tuple[str, Spec, Path, bool]]:
    """Return the one sweep of an experiment, as `e1.plans` does."""
    return [(name, read_spec(FOLDER / f"{name}.toml"), out, True)]


def read(name: str, out: Path) -> tuple[Scores, dict[str, Any]]:
    """Return the scores of an experiment, how far it is, and each method's scores and curves."""
    scores = read_scores(out)
    jobs = make_plan(read_spec(FOLDER / f"{name}.toml"), out)
    planned = sum(len(job.seeds) for job in jobs if job.method is not None)
    return scores, {
        "complete": scores.over == planned,
        "progress": {name: scores.progress(planned)},
        "methods": {m: summary(list(runs.values())) for m, runs in scores.runs.items()},
        "curves": {
            method: {
                column: mean_curve([curves.get(column, []) for curves in by_seed.values()])
                for column in ("success", *LOGGED)
            }
            for method, by_seed in scores.curves.items()
        },
    }


PUBLISHED = {
    "QAM, published": {
        "source": "ColinQiyangLi/qam, exp_data/qam-exp-data.pkl, 12 seeds, width 512 x 4",
        "step": [50_000, 100_000],
        "success": [0.802, 0.955],
        "deviation": [0.121, 0.062],
    }
}
"""What others published of E4's task: mean and standard deviation over seeds."""


def analyse_e2(out: Path) -> dict[str, Any]:
    """Return means over the seeds of each method, and its curves."""
    return read("e2", out)[1]


def mean_curve(curves: list[list[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Return the mean over seeds at each step that some seed has."""
    points: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            points.setdefault(step, []).append(value)
    return [(step, float(np.mean(values))) for step, values in sorted(points.items())]


def analyse_e4(out: Path) -> dict[str, Any]:
    """Return what each method came to and its curves, with what others published beside it."""
    return read("e4", out)[1] | {"published": PUBLISHED}


def analyse_e3(out: Path) -> dict[str, Any]:
    """Return means of each variant, and paired differences to the paper's start by budget."""
    scores, found = read("e3", out)
    found["differences"] = {}
    for method, runs in scores.runs.items():
        variant, _, setting = method.removeprefix("TRQAM ").partition(" ")
        paper = scores.runs.get(f"TRQAM paper {setting}", {})
        pairs = differences(runs, paper)
        if variant != "paper" and len(pairs):
            areas = differences(runs, paper, "area")
            found["differences"][method] = statistics.compare([pairs])._asdict()
            found["differences"][method]["area"] = float(np.mean(areas))
    return found
