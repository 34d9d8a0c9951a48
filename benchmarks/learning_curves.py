"""What runs of several algorithms learnt on two sides, in tables and tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.evidence.statistics import Unpaired, compare_unpaired
from trqam_fast.agents import algorithm
from trqam_fast.training.config import TrainConfig

AUTHORS, OURS = "authors' JAX code", "ours"
SETTLED = {
    "path_kl": "path KL", "lam": "lambda", "q_mean": "Q", "critic_loss": "critic loss",
    "adjoint_mean": "terminal adjoint", "bc_loss": "cloning loss",
}  # fmt: skip
"""What is compared of the second half of fine-tuning, by column."""
CURVES = ("path_kl", "lam", "q_mean")
"""Columns that are printed between the evaluations."""


@dataclass
class Curve:
    """What one seed of one side learnt; steps count from the beginning of fine-tuning.

    Attributes:
        success: By step, from 0 to 1.
        rows: By step, the means of what was logged since the one before.
        failure: Why it stopped, or None.
        versions: Of the authors' side, what ran it.
    """

    success: dict[int, float] = field(default_factory=dict)
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    failure: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def score(self, steps: list[int]) -> float:
        """Mean success over the evaluations at `steps`; those after a failure count as 0."""
        return float(np.mean([self.success.get(step, 0.0) for step in steps]))

    def mean(self, column: str, begin: int, end: int) -> float:
        """Mean of a column over the rows after `begin` and up to `end`; NaN without one."""
        values = [row[column] for step, row in self.rows.items() if begin < step <= end
                  if column in row]  # fmt: skip
        return float(np.mean(values)) if values else float("nan")


Curves = dict[tuple[str, str], dict[int, Curve]]
"""By algorithm and side, then by seed."""


def evaluated(every: int, updates: int) -> list[int]:
    """Return the steps of fine-tuning at which it is evaluated, without the beginning."""
    return [*(range(every, updates, every) if every > 0 else ()), updates]


def events(config: TrainConfig, updates: int) -> list[int]:
    """Return the steps of fine-tuning at which it is logged or evaluated."""
    intervals = (config.log_interval, config.eval_interval)
    return sorted({step for every in intervals for step in evaluated(every, updates)})


def summarise(curves: Curves, steps: list[int]) -> dict[str, Any]:
    """Return settled statistics, and permutation tests between sides and between algorithms.

    Args:
        curves: Both sides'.
        steps: At which they are evaluated; what has settled is what the second half shows.
    """
    half, end = steps[-1] / 2, steps[-1]
    values = {
        who: {"success": np.array([curve.score(steps) for curve in by_seed.values()])}
        | {
            column: np.array([curve.mean(column, half, end) for curve in by_seed.values()])
            for column in SETTLED
        }
        for who, by_seed in curves.items()
    }
    settled = {
        name_of(*who): {
            quantity: spread(x) for quantity, x in found.items() if np.isfinite(x).any()
        }
        for who, found in values.items()
    }
    tests: dict[str, dict[str, Unpaired]] = {}
    for (algo, side), found in values.items():
        if side == AUTHORS:
            name = f"{algorithm(algo).label}: {AUTHORS} - {OURS}"
            tests[name] = differences(found, values[algo, OURS])
        if algo == "trqam" and ("qam", side) in values:
            success = {"success": found["success"]}
            tests[f"{side}: TRQAM - QAM"] = differences(success, values["qam", side])
    return {"settled": settled, "tests": tests}


def name_of(algo: str, side: str) -> str:
    """Return what an algorithm on one side is called."""
    return f"{algorithm(algo).label}, {side}"


def spread(values: np.ndarray) -> dict[str, Any]:
    """Return mean, standard deviation and each seed's value; of one seed no deviation."""
    found = values[np.isfinite(values)]
    deviation = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return {"mean": float(np.mean(found)), "sd": deviation, "by_seed": values.tolist()}


def differences(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, Unpaired]:
    """Compare the quantities that every seed of two groups has."""
    return {
        name: compare_unpaired(x, second[name])
        for name, x in first.items()
        if np.isfinite(x).all() and np.isfinite(second[name]).all()
    }


def print_curves(curves: Curves, steps: list[int]) -> None:
    """Print success at each evaluation, and what was logged between them, as means over seeds."""
    head = f"{'':26}" + "".join(f"{step:>9,}" for step in (0, *steps))
    print(f"\nsuccess, %, by update\n{head}     mean  of each seed")
    for who, by_seed in curves.items():
        values = [[curve.score([step]) for curve in by_seed.values()] for step in (0, *steps)]
        scores = [curve.score(steps) for curve in by_seed.values()]
        cells = "".join(f"{100 * np.mean(x):9.0f}" for x in (*values, scores))
        print(f"{name_of(*who):26}{cells}  {', '.join(f'{100 * x:.0f}' for x in scores)}")
    spans = list(zip((0, *steps), steps, strict=False))
    for column in CURVES:
        print(f"\n{SETTLED[column]}, mean between evaluations\n{head}")
        for who, by_seed in curves.items():
            values = [[curve.mean(column, *span) for curve in by_seed.values()] for span in spans]
            known = np.isfinite(values).all(axis=1)
            cells = (
                f"{np.mean(x):9.4g}" if is_known else f"{'-':>9}"
                for x, is_known in zip(values, known, strict=True)
            )
            print(f"{name_of(*who):26}{'':9}{''.join(cells)}")


def print_summary(found: dict[str, Any], updates: int) -> None:
    """Print the settled statistics and the tests."""
    print(f"\nafter update {updates // 2:,}: mean, standard deviation between seeds")
    print(f"{'':26}" + "".join(f"{name:>25}" for name in SETTLED.values()))
    for who, values in found["settled"].items():
        cells = (values.get(name) for name in SETTLED)
        print(f"{who:26}" + "".join(f"{spread_in_words(x):>25}" for x in cells))
    print(
        "\npermutation tests over seeds, two-sided, uncorrected for their number; least p: the "
        f"smallest that so many seeds can give\n{'':56}{'difference [95 % bootstrap]':>34}"
        f"{'p':>8}{'least p':>9}"
    )
    for name, tests in found["tests"].items():
        for quantity, test in tests.items():
            scale, unit = (100, " points") if quantity == "success" else (1, "")
            difference = f"{scale * test.mean:+.3g}{unit}"
            if min(test.sizes) > 1:  # of one seed there is nothing to resample
                difference += f" [{scale * test.low:.3g}, {scale * test.high:.3g}]"
            label = SETTLED.get(quantity, "success, mean")
            print(f"{name:32}{label:24}{difference:>34}{test.p:8.3f}{test.least_p:9.3f}")


def spread_in_words(values: dict[str, Any] | None) -> str:
    """Return mean and standard deviation, the mean alone of one seed, a dash for nothing."""
    if values is None:
        return "-"
    deviation = "" if values["sd"] is None else f", {values['sd']:.2g}"
    return f"{values['mean']:.4g}{deviation}"
