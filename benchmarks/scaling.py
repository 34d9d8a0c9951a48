"""Time and memory of one update against S, B, width, K and E: python -m benchmarks.scaling.

One quantity changes at a time. The exponent is the slope of a straight line through the logarithms
of the upper half of the points, where fixed costs matter least.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from benchmarks.memory import held_bytes, temporary_bytes
from benchmarks.records import describe, save
from benchmarks.sizes import PAPER, make_agent, make_batch
from trqam_fast.cli import run_command
from trqam_fast.memory import keep_freed_memory
from trqam_fast.randomness import Randomness

BASE = replace(PAPER, name="base", width=256, batch=128)
RANGES = {
    "runs": (1, 2, 4, 8),
    "batch": (32, 64, 128, 256, 512),
    "width": (64, 128, 256, 512, 1024),
    "flow_steps": (5, 10, 20, 40),
    "ensemble": (1, 2, 5, 10, 20),
}


@dataclass(frozen=True)
class ScalingArgs:
    """Measure how time and memory of an update grow."""

    json: Path | None = None
    """File for the result."""
    rounds: int = 8
    """Updates timed at each point."""


def measure(size, rounds: int) -> dict[str, float]:
    """Return median seconds and peak bytes of an update, and its parameters' bytes."""
    agent, batch = make_agent(size, "cpu", "auto", "ieee"), make_batch(size, "cpu")
    randomness = Randomness(range(size.runs))

    def update() -> None:
        agent.update(batch, agent.draw_noise(randomness))

    update()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        update()
        seconds.append(time.perf_counter() - start)
    return {
        "ms": 1e3 * statistics.median(seconds),
        "MB": 1e-6 * (held_bytes(agent) + temporary_bytes(update)),
    }


def exponent(values: list[float], results: list[float]) -> float:
    """Return the slope of log(results) over log(values) for the upper half of the points."""
    half = len(values) // 2
    return float(np.polyfit(np.log(values[half:]), np.log(results[half:]), 1)[0])


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    args = tyro.cli(ScalingArgs, args=argv, prog="python -m benchmarks.scaling")
    keep_freed_memory()
    curves = {}
    for name, values in RANGES.items():
        points = [measure(replace(BASE, **{name: value}), args.rounds) for value in values]
        curve = {"values": values}
        for unit in ("ms", "MB"):
            found = [point[unit] for point in points]
            curve[unit] = [round(value, 3) for value in found]
            curve[f"{unit} exponent"] = round(exponent(values, found), 2)
        curves[name] = curve
        print(name, curve)
    if args.json is not None:
        what = "time and memory of one update, one quantity changed at a time"
        save(args.json, {**describe(what), "base": vars(BASE), "curves": curves})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
