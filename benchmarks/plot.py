"""Draw the results into docs/plots/: python -m benchmarks.plot."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tyro
from matplotlib.patches import Patch
from matplotlib.ticker import MultipleLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from benchmarks.records import ROOT
from benchmarks.sizes import GRID
from benchmarks.work import flops, least_bytes
from trqam_fast.cli import run_command
from trqam_fast.errors import UsageError
from trqam_fast.report.svg import alone, svg_of
from trqam_fast.runs.looks import INK, PAPER, STYLE
from trqam_fast.runs.plots import Picture

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
AUTHORS = "authors' JAX code"
BACKENDS: dict[str, dict[str, Any]] = {
    AUTHORS: {"color": "#b9bec7"},
    "reference": {"color": "#b9bec7"},
    "cpp": {"color": "#00755a"},
    "cpp, bf16": {"color": "#66c2a5"},
    "eager": {"color": "#c99700"},
    "compiled": {"color": "#7a5195"},
    "torch": {"color": "#6fa8dc"},
}
"""Of no algorithm's colour; their lightness differs, so that they are told apart without hue."""
HUES = ("#00755a", "#7a5195", "#c99700", "#6fa8dc", "#a4a9b2")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
CASES = {
    "fp32": "width 512, batch 256,\nfloat32", "bf16": "width 512, batch 256,\nbf16",
    "fp32_small": "width 128, batch 64,\nfloat32",
}  # fmt: skip
LABELS = {"flow_steps": "flow steps", "runs": "runs at once", "ensemble": "critics"}
WHAT = {"ms": "time", "MB": "memory"}


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


def bar(axes, place: float, height: float, entry: dict, scale: float, look: dict) -> None:
    """Draw a horizontal bar of a median over `scale` with its quartiles and its milliseconds."""
    median, error = spread(entry)
    error = [[value[0] / scale] for value in error]
    axes.barh(place, median / scale, height, xerr=error, ecolor=INK, capsize=2, **look)
    words = f"{median:,.0f} ms" if median >= 1000 else f"{median:.3g} ms"
    # Before the bar's end there is always room, however long it is.
    axes.annotate(
        words, (0, place), xytext=(3, 0), textcoords="offset points", va="center", size=7.5,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8},
    )  # fmt: skip


def draw_comparison(record: dict, axes) -> None:
    """Bars of one update: the authors' code and ours."""
    cases = record["cases"]
    for row, (name, case) in enumerate(cases.items()):
        scale = case["reference"]["median_ms"]
        for shift, side, who in ((-0.2, "reference", AUTHORS), (0.2, "ours", "cpp")):
            bar(axes, row + shift, 0.36, case[side], scale, BACKENDS[who])
        axes.annotate(
            f"{record['ratios'][name]:.2f} times as fast",
            (case["ours"]["quartile_3_ms"] / scale, row + 0.2), xytext=(6, 0),
            textcoords="offset points", va="center", size=8,
        )  # fmt: skip
    axes.set_yticks(range(len(cases)), [CASES.get(name, name) for name in cases])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45)
    axes.set_xlabel("time of an update / the authors' median (quartiles)")
    axes.grid(axis="y", visible=False)
    add_legend(axes, [AUTHORS, "cpp"])


def draw_ops(record: dict, axes) -> None:
    """Bars of every op at paper size: each backend relative to the reference."""
    suffix = " w512-b256-s1 cpu"
    groups = {k.removesuffix(suffix): v for k, v in record["groups"].items() if k.endswith(suffix)}
    groups = {k: v for k, v in groups.items() if "cpu-reference-ieee" in v and len(v) > 1}
    shown: dict[str, None] = {}
    for row, backends in enumerate(groups.values()):
        scale = backends["cpu-reference-ieee"]["median_ms"]
        height = 0.84 / len(backends)
        for index, (name, entry) in enumerate(backends.items()):
            backend, precision = name.split("-")[1:]
            who = backend if precision == "ieee" else f"{backend}, {precision}"
            shown[who] = None
            place = row + height * (index - (len(backends) - 1) / 2)
            bar(axes, place, height, entry, scale, BACKENDS[who])
    axes.set_yticks(range(len(groups)), groups)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel("time / the reference's median (quartiles)")
    axes.grid(axis="y", visible=False)
    add_legend(axes, list(shown))


def draw_roofline(record: dict, axes) -> None:
    """Rate against operations per byte, under the measured ceilings."""
    ceilings = {"GFLOP/s": 0.0, "GB/s": 0.0}
    looks = dict(zip(NAMES, zip(HUES * 2, MARKERS * 2, strict=False), strict=False))
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
        colour, marker = looks[name]
        axes.plot(intensity, entry["GFLOP/s"], marker, color=colour, markersize=7,
                  markerfacecolor=colour if size.width >= 512 else PAPER)  # fmt: skip
    for name, (colour, marker) in looks.items():
        axes.plot([], [], marker, color=colour, label=name)
    axes.plot([], [], "o", color=INK, label="width 512, batch 256")
    axes.plot([], [], "o", color=INK, markerfacecolor=PAPER, label="smaller (hollow)")
    ridge = ceilings["GFLOP/s"] / max(ceilings["GB/s"], 1e-9)
    heights = [ceilings["GB/s"], ceilings["GFLOP/s"], ceilings["GFLOP/s"]]
    axes.plot([1, ridge, 2000], heights, color=INK, linewidth=1.2)
    axes.annotate(f"fastest library product, {ceilings['GFLOP/s']:.0f} GFLOP/s",
                  (2000, ceilings["GFLOP/s"]), xytext=(0, 3), textcoords="offset points",
                  ha="right", size=8)  # fmt: skip
    axes.annotate(f"copy of 64 MiB, {ceilings['GB/s']:.0f} GB/s", (1.1, ceilings["GB/s"]),
                  xytext=(14, 2), textcoords="offset points", size=8)  # fmt: skip
    for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("log")
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_yticks([50, 100, 200, 300])
    axes.set_xlabel("operations per byte that must move")
    axes.set_ylabel("GFLOP/s")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=3)


def draw_phases(record: dict, axes) -> None:
    """Bars of the phases of an update of paper size."""
    phases = record["sizes"]["paper"]["phases"]
    axes.barh(list(phases), [phase["share"] for phase in phases.values()], color=HUES[0])
    for row, phase in enumerate(phases.values()):
        text = f"{phase['ms']:.3g} ms"
        if "share of the ceiling" in phase:
            text += f", {phase['share of the ceiling']:.0%} of the ceiling"
        axes.annotate(text, (phase["share"], row), xytext=(4, 0), textcoords="offset points",
                      va="center", size=8)  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(phase["share"] for phase in phases.values()))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MultipleLocator(0.05))
    axes.set_xlabel("share of the update's time")
    axes.grid(axis="y", visible=False)


def draw_scaling(record: dict, axes) -> None:
    """Time and memory against each quantity, relative to the first point."""
    curves = record["curves"].items()
    for (name, curve), colour, marker in zip(curves, HUES, MARKERS, strict=False):
        relative = [value / curve["values"][0] for value in curve["values"]]
        for unit, style, filled in (("ms", "-", colour), ("MB", "--", PAPER)):
            values = [value / curve[unit][0] for value in curve[unit]]
            first = f"{curve['values'][0]} to {curve['values'][-1]}"
            label = f"{LABELS.get(name, name)} ({first}): {WHAT[unit]} to the "
            label += f"{curve[f'{unit} exponent']:.2f}"
            axes.plot(relative, values, style, marker=marker, color=colour, label=label,
                      markerfacecolor=filled)  # fmt: skip
    for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("log", base=2)
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("quantity / its smallest value")
    axes.set_ylabel("time (solid), memory (dashed) / at the smallest")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2)


def add_legend(axes, names: list[str]) -> None:
    """Say below a drawing what its bars are."""
    bars = [Patch(label=name, **BACKENDS[name]) for name in names]
    below = -0.65 / axes.figure.get_figheight()
    axes.legend(handles=bars, loc="upper left", bbox_to_anchor=(0, below), ncols=4)


DRAWINGS = {
    "comparison": ("compare_cpu", draw_comparison, (7, 3.2), "One update on a CPU, 2 threads"),
    "ops": ("ops_cpu", draw_ops, (7.5, 11), "Every op on a CPU, width 512, batch 256"),
    "roofline": ("ops_cpu", draw_roofline, (7, 5.5), "Rates under the machine's ceilings"),
    "phases": ("phases_cpu", draw_phases, (7.5, 4.6), "One update of paper size by phase"),
    "scaling": ("scaling_cpu", draw_scaling, (7.5, 6), "One update as its sizes grow"),
}
"""Source, function, inches and title of each drawing."""


def main(argv: list[str] | None = None) -> int:
    """Draw."""
    args = tyro.cli(PlotArgs, args=argv, prog="python -m benchmarks.plot")
    drawn = []
    for name, (source, draw, figsize, title) in DRAWINGS.items():
        path = args.results / f"{source}.json"
        if not path.exists():
            continue
        with plt.rc_context(STYLE):
            figure, axes = plt.subplots(figsize=figsize, layout="constrained")
            axes.set_title(title)
            draw(json.loads(path.read_text()), axes)
            svg = svg_of(Picture(figure, []), name, title)
        args.to.mkdir(parents=True, exist_ok=True)
        (args.to / f"{name}.svg").write_text(alone(svg), encoding="utf-8")
        drawn.append(name)
    if not drawn:
        raise UsageError(f"--results is {args.results}, which holds no result; run the benchmarks")
    print(f"drew {', '.join(drawn)} into {args.to}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
