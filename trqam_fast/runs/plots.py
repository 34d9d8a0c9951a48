"""Draws the curves of runs, one picture for each quantity."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from trqam_fast.runs.read import Point, Run, read_run
from trqam_fast.text import printable

# Okabe and Ito's colours, which colour-blind readers can tell apart, without the pale yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 2, 1, 2)))
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
}
DPI, OVERVIEW_DPI = 200, 110
LEGEND_LIMIT = 8
LOG_RATIO = 50


@dataclass(frozen=True)
class Panel:
    """One quantity.

    Attributes:
        column: Column of metrics.csv or timing.csv, "success" of eval.csv, "episodes" for the
            success of online episodes.
        title: Heading.
        label: Label of the axis, with the unit.
        band: Columns of the lower and upper end of the shading, if not the seeds' extremes.
        log: Whether a logarithmic axis is allowed.
    """

    column: str
    title: str
    label: str
    band: tuple[str, str] | None = None
    log: bool = False

    @property
    def file(self) -> str:
        """Name of its picture; of a column that is no file name, its letters and a checksum."""
        name = re.sub(r"[^\w-]", "_", self.column, flags=re.ASCII)[:80]
        if name != self.column:
            name += f"-{zlib.crc32(self.column.encode()):08x}"
        return f"{name}.png"


PANELS = (
    Panel("success", "Success", "episodes solved"),
    Panel("episodes", "Online episodes, by twenties", "episodes solved"),
    Panel("path_kl", "Path KL and its budget", "nats per action step"),
    Panel("lam", "Dual variable λ", "λ", log=True),
    Panel("adjoint_mean", "Terminal adjoint", "mean size of a component", log=True),
    Panel("adjoint_max", "Terminal adjoint, largest", "largest component", log=True),
    Panel("q_mean", "Q at the batch", "Q, mean", band=("q_min", "q_max")),
    Panel("critic_loss", "Critic loss", "loss", log=True),
    Panel("adjoint_loss", "Adjoint-matching loss", "loss", log=True),
    Panel("bc_loss", "Behaviour-cloning loss", "loss", log=True),
    Panel("grad_norm", "Gradient norm, unclipped", "norm", log=True),
    Panel("updates_per_second", "Throughput", "updates per second"),
)
RATES = ("success", "episodes")
OVERVIEW = ("success", "path_kl", "lam", "q_mean", "critic_loss", "bc_loss")
SHOWN_ELSEWHERE = {"q_min", "q_max", "kl_ema", "adjoint_std", "seconds"}
"""Columns that add nothing to a panel which is drawn already."""


def panels_of(runs: list[Run]) -> list[Panel]:
    """Panels that some run has values for: the known ones, then one for each other column."""
    known = {panel.column for panel in PANELS} | SHOWN_ELSEWHERE
    others = dict.fromkeys(name for run in runs for name in run.columns if name not in known)
    panels = [*PANELS, *(Panel(name, name.replace("_", " "), name) for name in others)]
    return [panel for panel in panels if any(points_of(run, panel) for run in runs)]


def points_of(run: Run, panel: Panel) -> list[Point]:
    """The curve of a run in a panel."""
    if panel.column == "success":
        return run.success()
    if panel.column == "episodes":
        return run.episode_success()
    if panel.column == "lam" and not run.algorithm.budget:
        return []  # logged by earlier versions, and never moves
    points = run.curve(panel.column)
    if panel.band is not None:
        lows, highs = ({p[:2]: p for p in run.curve(column)} for column in panel.band)
        points = [
            point._replace(low=lows[point[:2]].low, high=highs[point[:2]].high)
            if point[:2] in lows and point[:2] in highs
            else point
            for point in points
        ]
    return points


def draw_panel(axis: Axes, panel: Panel, runs: list[Run], first: int = 0) -> None:
    """Draw one panel; run i has the colour of number `first + i` in every panel."""
    drawn: list[Point] = []
    for number, run in enumerate(runs, first):
        points = points_of(run, panel)
        if not points:
            continue
        colour = COLOURS[number % len(COLOURS)]
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        steps = [point.step for point in points]
        lows, highs = [point.low for point in points], [point.high for point in points]
        few = len(points) <= 30
        axis.plot(
            steps, [point.value for point in points], color=colour, linestyle=dash, linewidth=1.6,
            marker="o" if few else None, markersize=3.5, label=label_of(run.name), zorder=3,
        )  # fmt: skip
        if panel.column in RATES:
            axis.vlines(steps, lows, highs, color=colour, linewidth=1, alpha=0.5 if few else 0.1)
        axis.fill_between(steps, lows, highs, color=colour, alpha=0.13, linewidth=0)
        if panel.column == "path_kl":
            draw_budget(axis, run, points, colour)
        drawn += points
    finish_axis(axis, panel, drawn, [end for run in runs for end in run.boundaries.values()])


def draw_budget(axis: Axes, run: Run, points: list[Point], colour: str) -> None:
    """Draw the budget over the steps of each stage."""
    for stage in dict.fromkeys(point.stage for point in points):
        budget = run.budget(stage)
        steps = [point.step for point in points if point.stage == stage]
        if budget is not None:
            axis.plot([min(steps), max(steps)], [budget] * 2, color=colour, linestyle="--",
                      linewidth=1.2, zorder=2)  # fmt: skip


def finish_axis(axis: Axes, panel: Panel, points: list[Point], ends: list[int]) -> None:
    """Set scales, labels and the dotted ends of stages."""
    axis.set_title(literal(shorten(panel.title, 45)))
    axis.set_xlabel("step")
    axis.set_ylabel(literal(shorten(panel.label, 45)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    if points:
        steps = [point.step for point in points]
        for end in {end for end in ends if min(steps) < end < max(steps)}:
            axis.axvline(end, color="#444444", linewidth=1.3, linestyle=":", zorder=1)
    values = [point.value for point in points]
    if panel.column in RATES:
        axis.set_ylim(-0.03, 1.03)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif panel.log and values and min(values) > 0 and max(values) / min(values) > LOG_RATIO:
        axis.set_yscale("log")
    elif panel.column in ("path_kl", "updates_per_second"):
        axis.set_ylim(bottom=0)
    if panel.column == "path_kl":
        axis.plot([], [], color="#555555", linestyle="--", linewidth=1.2, label="budget")


def shorten(name: str, length: int = 25) -> str:
    """A name that fits a legend; the middle is left out."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def literal(text: str) -> str:
    """A text as matplotlib draws it: without mathematics, and without what no font has."""
    return printable(text, 200).replace("$", r"\$")


def label_of(name: str) -> str:
    """A run's label; matplotlib leaves those out that begin with an underscore."""
    label = literal(shorten(name))
    return f" {label}" if label.startswith("_") else label


def draw_picture(panel: Panel, runs: list[Run]) -> Figure:
    """One panel as a picture of its own, with a legend unless there are too many runs for one."""
    with plt.rc_context(STYLE):
        labels = len(runs) if len(runs) <= LEGEND_LIMIT else 0
        rows = math.ceil(labels / 2) if labels > 1 or panel.column == "path_kl" else 0
        figure, axis = plt.subplots(figsize=(4.4, 3.0 + 0.2 * rows), layout="constrained")
        draw_panel(axis, panel, runs)
        if rows:
            figure.legend(loc="outside lower left", ncols=2, columnspacing=1.2, handlelength=1.8)
    return figure


def save(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Write a picture and forget the figure."""
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


def write_overview(folder: Path, path: Path) -> None:
    """Draw a run's main curves in one picture.

    Args:
        folder: A run folder.
        path: The PNG file to write.

    Raises:
        UsageError: the folder holds no run.
    """
    run = read_run(folder)
    panels = [panel for panel in PANELS if panel.column in OVERVIEW]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(14, 7), layout="constrained")
        for axis, panel in zip(axes.flat, panels, strict=True):
            draw_panel(axis, panel, [run])
            if not points_of(run, panel):
                axis.text(0.5, 0.5, "no values", ha="center", transform=axis.transAxes)
        title = f"{run.config.get('algo', 'run')} on {run.config.get('env_name', 'unknown task')}"
        title = f"{title}, {len(run.seeds)} seeds (dotted: a stage ends; dashed: budget)"
        figure.suptitle(literal(title))
        save(figure, path, OVERVIEW_DPI)
