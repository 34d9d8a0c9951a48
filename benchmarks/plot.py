"""Draw the results into docs/plots/: python -m benchmarks.plot."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import tyro

from benchmarks.records import ROOT
from benchmarks.sizes import GRID
from benchmarks.work import flops, least_bytes
from trqam_fast.cli import run_command
from trqam_fast.errors import UsageError

NAMES = {
    "sde_rollout": ("sde_rollout",),
    "sde_rollout with gradient": ("sde_rollout", "sde_rollout backward"),
    "lean_adjoint": ("lean_adjoint",),
    "velocity_along": ("velocity_along",),
    "critics": ("critics",),
    "critics with gradient": ("critics", "critics backward"),
    "action gradient": ("action_gradient",),
    "update trqam": ("update",),
}
"""Groups of the benchmarks in the roofline, with what they do."""


@dataclass(frozen=True)
class PlotArgs:
    """Draw every result that is there."""

    results: Path = ROOT / "benchmarks" / "results"
    """Folder of the JSON files."""
    to: Path = ROOT / "docs" / "plots"
    """Folder of the drawings."""


def spread(entry: dict) -> tuple[float, list[list[float]]]:
    """Return a median and the distances to its quartiles, as error bars want them."""
    median = entry["median_ms"]
    return median, [[median - entry["quartile_1_ms"]], [entry["quartile_3_ms"] - median]]


def draw_comparison(record: dict, axes) -> None:
    """Bars of one update: the authors' code and ours."""
    cases = record["cases"]
    for index, (name, case) in enumerate(cases.items()):
        scale = case["reference"]["median_ms"]
        for offset, side, colour in ((-0.2, "reference", "0.6"), (0.2, "ours", "C0")):
            median, error = spread(case[side])
            error = [[value[0] / scale] for value in error]
            axes.bar(index + offset, median / scale, 0.38, color=colour, yerr=error, capsize=3)
        axes.text(index + 0.2, 0.02, f"{record['ratios'][name]:.2f}x", ha="center", color="w")
    axes.set_xticks(range(len(cases)), cases)
    axes.set_ylabel("time of an update / the authors' median")
    axes.set_title("authors' JAX code (grey), ours (blue); quartiles")


def draw_ops(record: dict, axes) -> None:
    """Bars of every op at paper size: each backend relative to the reference."""
    suffix = " w512-b256-s1 cpu"
    groups = {k.removesuffix(suffix): v for k, v in record["groups"].items() if k.endswith(suffix)}
    groups = {k: v for k, v in groups.items() if "cpu-reference-ieee" in v and len(v) > 1}
    for row, backends in enumerate(groups.values()):
        scale = backends["cpu-reference-ieee"]["median_ms"]
        for index, (name, entry) in enumerate(backends.items()):
            median, error = spread(entry)
            error = [[value[0] / scale] for value in error]
            colour = f"C{['reference', 'cpp', 'eager', 'compiled'].index(name.split('-')[1])}"
            alpha = 0.5 if name.endswith("bf16") else 1.0
            height = 0.8 / len(backends)
            axes.barh(
                row + index * height, median / scale, height, xerr=error, color=colour, alpha=alpha
            )
    axes.set_yticks([row + 0.3 for row in range(len(groups))], groups)
    axes.invert_yaxis()
    axes.set_xlabel("time / the reference's median, with quartiles")
    axes.set_title("reference (blue), cpp (orange; pale: bf16), eager (green), compiled (red)")


def draw_roofline(record: dict, axes) -> None:
    """Rate against operations per byte, under the measured ceilings."""
    ceilings = {"GFLOP/s": 0.0, "GB/s": 0.0}
    for group, backends in record["groups"].items():
        name, size_name, _ = group.rsplit(" ", 2)
        size = next((size for size in GRID if size.name == size_name), None)
        entry = backends.get("cpu-cpp-ieee", {})
        for unit in ceilings:
            ceilings[unit] = max(ceilings[unit], entry.get(f"ceiling {unit}", 0.0))
        if name not in NAMES or size is None or "GFLOP/s" not in entry:
            continue
        counts = flops(size)
        intensity = sum(counts[part] for part in NAMES[name]) / least_bytes(size, name)
        axes.plot(intensity, entry["GFLOP/s"], "o", color=f"C{list(NAMES).index(name)}")
    for index, name in enumerate(NAMES):
        axes.plot([], [], "o", color=f"C{index}", label=name)
    ridge = ceilings["GFLOP/s"] / max(ceilings["GB/s"], 1e-9)
    axes.plot([1, ridge, 2000], [ceilings["GB/s"], ceilings["GFLOP/s"], ceilings["GFLOP/s"]], "k")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte that must move")
    axes.set_ylabel("GFLOP/s")
    axes.legend(fontsize=7)
    axes.set_title("roofline: fastest library product, copy of 64 MiB")


def draw_phases(record: dict, axes) -> None:
    """Bars of the phases of an update of paper size."""
    phases = record["sizes"]["paper"]["phases"]
    axes.barh(list(phases), [phase["share"] for phase in phases.values()])
    for row, phase in enumerate(phases.values()):
        if "share of the ceiling" in phase:
            axes.text(phase["share"], row, f" {phase['share of the ceiling']:.0%} of the ceiling",
                      va="center", fontsize=7)  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(phase["share"] for phase in phases.values()))
    axes.set_xlabel("share of the update's time")
    axes.set_title("one update of paper size by phase")


def draw_scaling(record: dict, axes) -> None:
    """Time and memory against each quantity, relative to the first point."""
    for index, (name, curve) in enumerate(record["curves"].items()):
        relative = [value / curve["values"][0] for value in curve["values"]]
        for unit, style in (("ms", "o-"), ("MB", "s--")):
            values = [value / curve[unit][0] for value in curve[unit]]
            label = f"{name}: {unit}^{curve[f'{unit} exponent']:.2f}"
            axes.plot(relative, values, style, color=f"C{index}", label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("quantity / its smallest value")
    axes.set_ylabel("time (solid), memory (dashed) / at the smallest")
    axes.legend(fontsize=7)
    axes.set_title("scaling of one update; exponents of the upper half")


DRAWINGS = {
    "comparison": ("compare_cpu", draw_comparison, (6, 4)),
    "ops": ("ops_cpu", draw_ops, (8, 8)),
    "roofline": ("ops_cpu", draw_roofline, (7, 5)),
    "phases": ("phases_cpu", draw_phases, (8, 5)),
    "scaling": ("scaling_cpu", draw_scaling, (7, 5)),
}


def main(argv: list[str] | None = None) -> int:
    """Draw."""
    args = tyro.cli(PlotArgs, args=argv, prog="python -m benchmarks.plot")
    plt.rcParams["svg.hashsalt"] = "trqam_fast"  # The same file for the same data.
    drawn = []
    for name, (source, draw, figsize) in DRAWINGS.items():
        path = args.results / f"{source}.json"
        if not path.exists():
            continue
        figure, axes = plt.subplots(figsize=figsize, layout="constrained")
        draw(json.loads(path.read_text()), axes)
        args.to.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.to / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
        drawn.append(name)
    if not drawn:
        raise UsageError(f"--results is {args.results}, which holds no result; run the benchmarks")
    print(f"drew {', '.join(drawn)} into {args.to}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
