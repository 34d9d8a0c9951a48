"""One update of every algorithm, alternating: python -m benchmarks.algorithms."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from benchmarks.records import describe, save
from benchmarks.sizes import PAPER, PAPER_SMALL, make_agent, make_batch
from trqam_fast.agents import ALGORITHMS, algorithm
from trqam_fast.cli import run_command
from trqam_fast.memory import keep_freed_memory
from trqam_fast.randomness import Randomness

SIZES = {"small": PAPER_SMALL, "paper": PAPER}
STANDARD = "trqam"
"""The algorithm that the others are compared with, turn by turn."""


@dataclass(frozen=True)
class AlgorithmsArgs:
    """Time one update of every fine-tuning algorithm at two sizes, in turns."""

    turns: int = 30
    """Turns; each has one update of every algorithm."""
    precision: Literal["ieee", "bf16"] = "ieee"
    """Operands of the matrix products."""
    json: Path | None = None
    """File for the result."""


def updates(size, precision: str) -> dict[str, Callable[[], object]]:
    """Return one update of every fine-tuning algorithm, with fresh noise each time."""
    calls: dict[str, Callable[[], object]] = {}
    for algo in ALGORITHMS:
        if algorithm(algo).fine_tunes:
            agent, batch = make_agent(size, "cpu", "auto", precision, algo), make_batch(size, "cpu")
            randomness = Randomness(range(size.runs))

            def update(agent=agent, batch=batch, randomness=randomness):
                agent.update(batch, agent.draw_noise(randomness))

            calls[algo] = update
    return calls


def measure(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, dict[str, float]]:
    """Return milliseconds, and the time over the standard's of the same turn, by algorithm."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-2, turns):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    found = {}
    for name, times in seconds.items():
        ratios = np.array(times) / np.array(seconds[STANDARD])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).round(3)
        found[name] = {
            "median_ms": round(1e3 * float(np.median(times)), 3),
            "ratio": float(middle), "ratio_q1": float(low), "ratio_q3": float(high),
        }  # fmt: skip
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    args = tyro.cli(AlgorithmsArgs, args=argv, prog="python -m benchmarks.algorithms")
    keep_freed_memory()
    cases = {}
    for title, size in SIZES.items():
        cases[title] = measure(updates(size, args.precision), args.turns)
        for name, found in cases[title].items():
            print(
                f"{title:6} {name:6} {found['median_ms']:9.2f} ms, {found['ratio']:5.2f} times "
                f"{STANDARD} ({found['ratio_q1']:.2f} to {found['ratio_q3']:.2f})"
            )
    if args.json is not None:
        what = "one update of every algorithm, in turns"
        sizes = {title: vars(size) for title, size in SIZES.items()}
        save(args.json, describe(what) | {"sizes": sizes, "turns": args.turns, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
