"""Where the time of one update goes on the CPU: python -m benchmarks.phases.

Every compiled pass of an update is timed where Python calls it, and set beside the operations it
does and the fastest library product of the same machine. What is left over is PyTorch's dispatch,
autograd and the small operations between the passes.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.records import describe, save
from benchmarks.sizes import PAPER, PAPER_SMALL, make_agent, make_batch
from benchmarks.work import flops, gemm_ceiling
from trqam_fast.cli import run_command
from trqam_fast.memory import keep_freed_memory
from trqam_fast.randomness import Randomness

PASSES = (
    "mlp.ops", "action_gradient.ops", "sde_rollout.ops", "lean_adjoint.ops", "velocity_along.ops",
)  # fmt: skip
WORK = {
    "rollout and next actions": ("sde_rollout", "ode_rollout"),
    "target critics": ("critics",),
    "critics": ("critics",),
    "cloned field": ("field",),
    "action gradient": ("critics", "critics"),
    "sweep": ("lean_adjoint",),
    "base velocities": ("velocity_along",),
    "cloned field, backward": ("field backward",),
    "critics, backward": ("critics backward",),
    "fine-tuned field, backward": ("sde_rollout backward",),
}
"""Phases of an update, with the entries of `flops` that they do."""


@dataclass(frozen=True)
class PhasesArgs:
    """Profile one update by phase."""

    precision: Literal["ieee", "bf16"] = "ieee"
    """Operands of the matrix products."""
    updates: int = 30
    """Updates to time."""
    json: Path | None = None
    """File for the result."""


def label(name: str, fields: Any, batch: int) -> str:
    """Return the phase of a call.

    Args:
        name: The call's.
        fields: Its arguments.
        batch: Rows of the batch.
    """
    if name == "mlp_forward":
        _, members, *_ = fields.network
        if members == 1:
            return "cloned field"
        return "target critics" if fields.tape is None else "critics"
    if name == "mlp_backward":
        _, members, *_ = fields.network
        if members > 1:
            return "critics, backward"
        return "cloned field, backward" if fields.rows == batch else "fine-tuned field, backward"
    return {
        "action_gradient": "action gradient",
        "sde_rollout": "rollout and next actions",
        "lean_adjoint": "sweep",
        "velocity_along": "base velocities",
    }[name]


def profile(size, precision: str, updates: int) -> dict:
    """Return seconds of every phase, median over `updates`."""
    agent, batch = make_agent(size, "cpu", "cpp", precision), make_batch(size, "cpu")
    randomness = Randomness([0])
    times: dict[str, list[float]] = {}
    modules = [sys.modules[f"trqam_fast.kernels.{name}"] for name in PASSES]
    original = modules[0].call

    def timed(name, fields, like, precision):
        start = time.perf_counter()
        original(name, fields, like, precision)
        elapsed = time.perf_counter() - start
        times.setdefault(label(name, fields, size.batch), []).append(elapsed)

    for module in modules:
        module.call = timed
    try:
        for index in range(-3, updates):
            if index == 0:
                times.clear()
            start = time.perf_counter()
            noise = agent.draw_noise(randomness)
            drawn = time.perf_counter()
            gradient, terms = agent.gradients(batch, noise)
            done = time.perf_counter()
            agent.apply(gradient, terms)
            end = time.perf_counter()
            times.setdefault("noise", []).append(drawn - start)
            times.setdefault("clip, Adam, targets", []).append(end - done)
            times.setdefault("update", []).append(end - start)
    finally:
        for module in modules:
            module.call = original
    medians = {name: statistics.median(values) for name, values in times.items()}
    total = medians.pop("update")
    medians["the rest"] = total - sum(medians.values())
    ceiling, counts = gemm_ceiling("cpu", precision), flops(size)
    phases = {}
    for name, seconds in medians.items():
        phases[name] = {"ms": round(1e3 * seconds, 3), "share": round(seconds / total, 3)}
        if name in WORK:
            reached = 1e-9 * sum(counts[part] for part in WORK[name]) / seconds
            phases[name]["GFLOP/s"] = round(reached, 1)
            phases[name]["share of the ceiling"] = round(reached / ceiling, 2)
    return {
        "size": vars(size), "precision": precision, "update_ms": round(1e3 * total, 3),
        "ceiling GFLOP/s": round(ceiling, 1), "phases": phases,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Profile, print, write."""
    args = tyro.cli(PhasesArgs, args=argv, prog="python -m benchmarks.phases")
    keep_freed_memory()
    sizes = {}
    for size in (PAPER, PAPER_SMALL):
        result = sizes[size.name] = profile(size, args.precision, args.updates)
        print(f"{size.name}: {result['update_ms']:.1f} ms, ceiling {result['ceiling GFLOP/s']}")
        for name, phase in result["phases"].items():
            rate = phase.get("GFLOP/s")
            reached = f"{rate:7.0f} GFLOP/s {phase['share of the ceiling']:5.0%}" if rate else ""
            print(f"  {name:28}{phase['ms']:9.2f} ms {phase['share']:5.0%} {reached}")
    if args.json is not None:
        save(args.json, {**describe("time of one update by phase"), "sizes": sizes})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
