"""Time one TRQAM update of the authors' JAX code against ours, alternating in blocks.

    python benchmarks/compare_reference.py --reference CHECKOUT --reference-python PYTHON \
        --device cpu --json OUT

CHECKOUT is a clone of `yonghdong/trqam`, PYTHON an interpreter with its requirements. On the CPU
both sides are held to the same cores. Each turn times a block of the one and a block of the other,
so that a load on the machine meets both; a block's first update is not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.records import describe, save
from benchmarks.sizes import PAPER, PAPER_SMALL, Size, make_agent, make_batch
from trqam_fast.cli import run_command
from trqam_fast.devices import check_device
from trqam_fast.errors import RunError, UsageError
from trqam_fast.memory import keep_freed_memory
from trqam_fast.training.updater import WARMUP

Update = Callable[[], None]


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


class Reference:
    """The authors' code in a process of its own."""

    def __init__(self, args: CompareArgs) -> None:
        worker = Path(__file__).with_name("reference_worker.py")
        environment = dict(os.environ, JAX_PLATFORMS=args.device, PYTHONPATH=str(args.reference))
        self.process = subprocess.Popen(
            [str(args.reference_python), str(worker)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ask(self, **request: object) -> dict:
        """Send one request and return its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # It has ended; its last words say why.
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            words = self.process.stderr.read().strip().splitlines() or ["no message"]
            raise RunError(
                f"the reference stopped ({words[-1]}); check --reference and --reference-python"
            )
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()


def our_update(case: Case, device: str) -> Update:
    """Return a function that does one update with fresh noise and waits for it.

    On a GPU it is one replay of a captured graph, as the trainer runs it.
    """
    backend = "cpp" if device == "cpu" else "triton"
    agent = make_agent(case.size, device, backend, case.precision)
    batch = make_batch(case.size, device)
    generators = [torch.Generator(device).manual_seed(0)]

    def update() -> None:
        agent.update(batch, agent.draw_noise(generators))

    if device == "cpu":
        return update
    graph = capture(update, generators)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


def capture(update: Update, generators: list[torch.Generator]) -> torch.cuda.CUDAGraph:
    """Return `update` as a CUDA graph, after warm-up on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            update()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        update()
    return graph


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


def compare(case: Case, reference: Reference, device: str, turns: int) -> dict:
    """Time both sides in turns; return their spreads and the ratio of the medians."""
    update = our_update(case, device)
    reference.ask(do="prepare", name=case.name, size=vars(case.size))
    theirs: list[float] = []
    ours: list[float] = []
    per_turn = []
    for turn in range(-1, turns):
        answer = reference.ask(do="time", name=case.name, updates=case.updates + 1)["seconds"][1:]
        block = time_block(update, case.updates + 1)[1:]
        if turn >= 0:  # The first turn warms both up.
            theirs += answer
            ours += block
            per_turn.append(statistics.median(answer) / statistics.median(block))
    return {
        "size": vars(case.size),
        "precision": case.precision,
        "updates": len(ours),
        "reference": spread(theirs),
        "ours": spread(ours),
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "ratio_of_each_turn": [round(ratio, 3) for ratio in per_turn],
    }


def main(argv: list[str] | None = None) -> int:
    """Compare, print a table, write the result."""
    import tyro  # Here, so that the timing can be used without a command line.

    args = tyro.cli(CompareArgs, args=argv, prog="python benchmarks/compare_reference.py")
    check_device(args.device)
    if not (args.reference / "agents" / "trqam.py").is_file():
        raise UsageError(
            f"--reference is {args.reference}, which has no agents/trqam.py; give a checkout of "
            "https://github.com/yonghdong/trqam"
        )
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
    reference = Reference(args)
    try:
        versions = reference.ask(do="describe")
        results = {case.name: compare(case, reference, args.device, blocks) for case in cases}
    finally:
        reference.close()
    print(f"{'case':12}{'reference ms':>22}{'ours ms':>22}{'ratio':>8}  turns")
    for name, result in results.items():
        columns = [
            f"{side['median_ms']:.1f} ({side['quartile_1_ms']:.1f}-{side['quartile_3_ms']:.1f})"
            for side in (result["reference"], result["ours"])
        ]
        turns = result["ratio_of_each_turn"]
        print(
            f"{name:12}{columns[0]:>22}{columns[1]:>22}{result['ratio']:8.2f}  "
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
