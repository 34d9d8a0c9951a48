"""Time one TRQAM update of the authors' JAX code against ours, alternating in blocks.

    python benchmarks/compare_reference.py --reference CHECKOUT --reference-python PYTHON \
        --device cpu --json OUT

CHECKOUT is a clone of `yonghdong/trqam`, PYTHON an interpreter with its requirements. On the CPU
both sides are held to the same cores. Each turn times a block of the one and a block of the other,
so that a load on the machine meets both; a block's first update is not counted.

On a GPU there are two numbers. *Latency* waits for every update, so it holds what either side
spends on the host before and after: dispatching some hundred arrays in JAX, launching one graph
here. *Throughput* is what training sees: ours by events of the device around graphs of ten updates
that are queued together, the authors' by the clock around 50 updates in a row.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.graphs import Update, capture, event_seconds
from benchmarks.records import describe, save
from benchmarks.reference import Reference, check_checkout
from benchmarks.sizes import PAPER, PAPER_SMALL, Size, make_agent, make_batch
from trqam_fast.cli import run_command
from trqam_fast.devices import check_device
from trqam_fast.errors import UsageError
from trqam_fast.memory import keep_freed_memory
from trqam_fast.randomness import Randomness
from trqam_fast.training.updater import UPDATES_PER_REPLAY

Mode = Literal["latency", "throughput"]
MODES: dict[str, tuple[Mode, ...]] = {"cpu": ("latency",), "cuda": ("latency", "throughput")}
IN_A_ROW = 50
"""Updates of the authors' code that are queued together for its throughput."""


@dataclass(frozen=True)
class CompareArgs:
    """Time one TRQAM update of the authors' JAX code against ours."""

    reference: Path
    """Checkout of the authors' repository, yonghdong/trqam."""
    reference_python: Path = Path(sys.executable)
    """Interpreter that has JAX and the other requirements of the authors' code."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of both sides."""
    threads: int = 0
    """Cores for either side on the CPU; 0 takes all that this process may use."""
    json: Path | None = None
    """File for the result."""
    quick: bool = False
    """Fewer and shorter blocks."""


@dataclass(frozen=True)
class Case:
    """One size in one precision of ours; `updates` in a block."""

    name: str
    size: Size
    precision: str
    updates: int

    def updates_in(self, mode: Mode) -> int:
        """Return how many numbers a block gives: single updates, or rows and graphs of them."""
        return self.updates if mode == "latency" else 3


def time_reference(reference: Reference, case: Case, mode: Mode) -> list[float]:
    """Return seconds of an update of the authors' code, the first of a block not among them."""
    every = 1 if mode == "latency" else IN_A_ROW
    answer = reference.ask(
        do="time", name=case.name, updates=(case.updates_in(mode) + 1) * every, every=every
    )
    return answer["seconds"][1:]


class Ours:
    """Our update with fresh noise, on a GPU as captured graphs like the trainer's."""

    def __init__(self, case: Case, device: str) -> None:
        self.device = device
        backend = "cpp" if device == "cpu" else "triton"
        agent = make_agent(case.size, device, backend, case.precision)
        batch = make_batch(case.size, device)
        randomness = Randomness([0], device)
        self.update = lambda: agent.update(batch, agent.draw_noise(randomness))
        if device == "cuda":
            self.one = capture(self.update, 1)
            self.ten = capture(self.update, UPDATES_PER_REPLAY)

    def time(self, case: Case, mode: Mode) -> list[float]:
        """Return seconds of an update, the first of a block not among them."""
        updates = case.updates_in(mode)
        if self.device == "cpu":
            return time_block(self.update, updates + 1)[1:]
        if mode == "throughput":
            return event_seconds(self.ten, UPDATES_PER_REPLAY, updates)

        def replay() -> None:
            self.one.replay()
            torch.cuda.synchronize()

        return time_block(replay, updates + 1)[1:]


def time_block(update: Update, updates: int) -> list[float]:
    """Return the seconds of each of `updates` updates."""
    seconds = []
    for _ in range(updates):
        start = time.perf_counter()
        update()
        seconds.append(time.perf_counter() - start)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, median, high = (1e3 * value for value in statistics.quantiles(seconds, n=4))
    return {"median_ms": median, "quartile_1_ms": low, "quartile_3_ms": high}


def compare(case: Case, reference: Reference, ours: Ours, turns: int, mode: Mode) -> dict:
    """Time both sides in turns; return their spreads and the median ratio of a turn."""
    theirs_all: list[float] = []
    ours_all: list[float] = []
    per_turn = []
    for turn in range(-1, turns):
        their_block, our_block = time_reference(reference, case, mode), ours.time(case, mode)
        if turn >= 0:  # The first turn warms both up.
            theirs_all += their_block
            ours_all += our_block
            per_turn.append(statistics.median(their_block) / statistics.median(our_block))
    return {
        "size": vars(case.size),
        "precision": case.precision,
        "mode": mode,
        "updates": len(ours_all),
        "reference": spread(theirs_all),
        "ours": spread(ours_all),
        "ratio": statistics.median(per_turn),
        "ratio_of_each_turn": [round(ratio, 3) for ratio in per_turn],
    }


def compare_all(
    cases: list[Case], reference: Reference, device: str, turns: int
) -> dict[str, dict]:
    """Compare every case in every mode; a GPU's throughput goes by the case's name and its own."""
    results = {}
    for case in cases:
        ours = Ours(case, device)
        reference.ask(do="prepare", name=case.name, size=vars(case.size))
        for mode in MODES[device]:
            name = case.name if mode == "latency" else f"{case.name}_{mode}"
            results[name] = compare(case, reference, ours, turns, mode)
        if device == "cuda":
            results[name]["reference_kernels"] = reference.ask(do="profile", name=case.name)
    return results


def main(argv: list[str] | None = None) -> int:
    """Compare, print a table, write the result."""
    import tyro  # Here, so that the timing can be used without a command line.

    args = tyro.cli(CompareArgs, args=argv, prog="python benchmarks/compare_reference.py")
    check_device(args.device)
    check_checkout(args.reference)
    keep_freed_memory()
    threads = None
    if args.device == "cpu":
        cores = sorted(os.sched_getaffinity(0))
        if not 0 <= args.threads <= len(cores):
            raise UsageError(f"--threads is {args.threads}; this process may use {len(cores)}")
        threads = args.threads or len(cores)
        os.sched_setaffinity(0, cores[:threads])  # The reference inherits it.
        torch.set_num_threads(threads)
    blocks, scale = (4, 1) if args.quick else (12, 2)
    full = "ieee" if args.device == "cpu" else "tf32"
    cases = [
        Case("fp32", PAPER, full, 3 * scale),
        Case("bf16", PAPER, "bf16", 3 * scale),
        Case("fp32_small", PAPER_SMALL, full, 30 * scale),
    ]
    reference = Reference(args.reference, args.reference_python, args.device)
    try:
        versions = reference.ask(do="describe")
        results = compare_all(cases, reference, args.device, blocks)
    finally:
        reference.close()
    print(f"{'case':22}{'reference ms':>22}{'ours ms':>22}{'ratio':>8}  turns")
    for name, result in results.items():
        columns = [
            f"{side['median_ms']:.4g} ({side['quartile_1_ms']:.4g}-{side['quartile_3_ms']:.4g})"
            for side in (result["reference"], result["ours"])
        ]
        turns = result["ratio_of_each_turn"]
        print(
            f"{name:22}{columns[0]:>22}{columns[1]:>22}{result['ratio']:8.2f}  "
            f"{min(turns):.2f} to {max(turns):.2f}"
        )
    if args.json is not None:
        record = {
            **describe("one TRQAM update of the authors' JAX code and of ours, alternating"),
            "reference": versions,
            "threads": threads,
            "ratios": {name: round(result["ratio"], 3) for name, result in results.items()},
            "cases": results,
        }
        save(args.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
