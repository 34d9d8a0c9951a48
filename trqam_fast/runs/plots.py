"""Draws the curves of runs, one picture for each quantity."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from trqam_fast.files import written_whole
from trqam_fast.runs.looks import FAINT, INK, STYLE, Look, looks
from trqam_fast.runs.read import Point, Run, read_run
from trqam_fast.text import count_of, printable

OVERVIEW_DPI = 110
LEGEND_LIMIT = 8
SEEDS_DRAWN = 12
"""Seeds of a run that have lines of their own; more would hide each other."""
POINTS_TOLD = 60
"""Points of a line whose values are told."""
LOG_RATIO, LOG_RATIO_OF_RATES = 50, 10
"""Largest over smallest value from which on an axis is logarithmic."""


class Hover(NamedTuple):
    """A value to be told where the pointer is, in the coordinates of its data."""

    axis: Axes
    x: float
    y: float
    text: str


class Picture(NamedTuple):
    """A figure and the values to be told in it."""

    figure: Figure
    hovers: list[Hover]


@dataclass(frozen=True)
class Panel:
    """One quantity.

    Attributes:
        column: Column of metrics.csv or timing.csv, "success" or "return" of eval.csv, "episodes"
            for the success of online episodes.
        title: Heading.
        label: Label of the axis, with the unit.
        band: Columns of the lower and upper end of the shading, if not the seeds' extremes.
        log: Largest over smallest value from which on the axis is logarithmic; 0 for never.
    """

    column: str
    title: str
    label: str
    band: tuple[str, str] | None = None
    log: int = 0

    @property
    def file(self) -> str:
        """Name of its picture; of a column that is no file name, its letters and a checksum."""
        name = re.sub(r"[^\w-]", "_", self.column, flags=re.ASCII)[:80]
        if name != self.column:
            name += f"-{zlib.crc32(self.column.encode()):08x}"
        return f"{name}.svg"


PANELS = (
    Panel("success", "Success", "episodes solved"),
    Panel("return", "Return", "sum of an episode's rewards"),
    Panel("episodes", "Online episodes, by twenties", "episodes solved"),
    Panel("path_kl", "Path KL and its budget", "nats per action step", log=LOG_RATIO),
    Panel("lam", "Dual variable λ", "λ", log=LOG_RATIO),
    Panel("adjoint_mean", "Terminal adjoint", "mean size of a component", log=LOG_RATIO),
    Panel("adjoint_max", "Terminal adjoint, largest", "largest component", log=LOG_RATIO),
    Panel("adjoint_gain", "Adjoint gain of the sweep", "largest |a| / |a at t = 1|", log=LOG_RATIO),
    Panel("q_mean", "Q at the batch", "Q, mean", band=("q_min", "q_max")),
    Panel("value_gap", "Value gap", "Q of the policy − Q of the data"),
    Panel("critic_loss", "Critic loss", "loss", log=LOG_RATIO),
    Panel("adjoint_loss", "Adjoint-matching loss", "loss", log=LOG_RATIO),
    Panel("bc_loss", "Behaviour-cloning loss", "loss", log=LOG_RATIO),
    Panel("grad_norm", "Gradient norm, unclipped", "norm", log=LOG_RATIO),
    Panel("updates_per_second", "Throughput", "updates per second", log=LOG_RATIO_OF_RATES),
)
RATES = ("success", "episodes")
OVERVIEW = ("success", "path_kl", "lam", "q_mean", "critic_loss", "bc_loss")
SHOWN_ELSEWHERE = {"q_min", "q_max", "kl_ema", "adjoint_std", "seconds"}
"""Columns that add nothing to a panel which is drawn already."""


def panels_of(runs: list[Run]) -> list[Panel]:
    """Panels that some run has values for: the known ones, then one for each other column."""
    known = {panel.column for panel in PANELS} | SHOWN_ELSEWHERE
    others = dict.fromkeys(name for run in runs for name in run.columns if name not in known)
    own = [Panel(n, printable(n.replace("_", " ").capitalize()), printable(n)) for n in others]
    return [panel for panel in [*PANELS, *own] if any(points_of(run, panel) for run in runs)]


def points_of(run: Run, panel: Panel) -> list[Point]:
    """The curve of a run in a panel."""
    if panel.column == "success":
        return run.success()
    if panel.column == "episodes":
        return run.episode_success()
    if panel.column == "return" and not run.own_data:
        return []  # it tells OGBench's steps until success
    if panel.column == "lam" and not run.algorithm.budget:
        return []  # logged by earlier versions, and never moves
    points = run.curve(panel.column)
    if panel.column == "updates_per_second":  # it is 0 while online steps have no updates
        points = [point for point in points if point.value > 0]
    if panel.band is not None:
        lows, highs = ({p[:2]: p for p in run.curve(column)} for column in panel.band)
        points = [
            point._replace(low=lows[point[:2]].low, high=highs[point[:2]].high)
            if point[:2] in lows and point[:2] in highs
            else point
            for point in points
        ]
    return points


def looks_of(runs: list[Run]) -> list[Look]:
    """Return how each run is drawn, in every panel."""
    return looks(run.algorithm.colour for run in runs)


def title_of(run: Run, runs: list[Run]) -> str:
    """Return what a run is called: its algorithm, and its name if others have the same."""
    label = run.algorithm.label
    if label and [other.algorithm.label for other in runs].count(label) == 1:
        return label
    name = printable(run.name, 400)
    return f"{name} ({label})" if label else name


def value_in_words(panel: Panel, value: float) -> str:
    """Return a value of a panel with its unit."""
    return f"{100 * value:.1f} %" if panel.column in RATES else f"{value:.4g}"


def told(axis: Axes, panel: Panel, points: list[Point], name: str) -> list[Hover]:
    """Return the values of some points in words, of many each second, third and so on."""
    found = []
    for point in points[:: -(-len(points) // POINTS_TOLD) or 1]:
        text = f"{name}, {point.stage or 'run'}, step {point.step:,}: "
        text += value_in_words(panel, point.value)
        if point.low < point.high:
            both = point.low, point.high
            ends = (value_in_words(panel, end).removesuffix(" %") for end in both)
            text += " [" + ", ".join(ends) + "]"
        found.append(Hover(axis, point.step, point.value, text))
    return found


def draw_panel(axis: Axes, panel: Panel, runs: list[Run]) -> list[Hover]:
    """Draw one panel; return the values to be told in it."""
    drawn: list[Point] = []
    hovers: list[Hover] = []
    for run, look in zip(runs, looks_of(runs), strict=True):
        points = points_of(run, panel)
        if not points:
            continue
        colour, dash = look
        steps = [point.step for point in points]
        lows, highs = [point.low for point in points], [point.high for point in points]
        few = len(points) <= 30
        axis.plot(
            steps, [point.value for point in points], color=colour, linestyle=dash, linewidth=1.6,
            marker="o" if few else None, markersize=3.5, 
            label=label_of(title_of(run, runs)), zorder=3,
        )  # fmt: skip
        lines = run.seed_curves(panel.column)
        for line in lines.values() if 1 < len(lines) <= SEEDS_DRAWN else []:
            axis.plot(*zip(*line, strict=True), color=colour, linewidth=0.7, alpha=0.45, zorder=2)
        hovers += told(axis, panel, points, title_of(run, runs))
        if panel.column in RATES:
            axis.vlines(steps, lows, highs, color=colour, linewidth=1, alpha=0.5 if few else 0.1)
        axis.fill_between(steps, lows, highs, color=colour, alpha=0.13, linewidth=0)
        if panel.column == "path_kl":
            draw_budget(axis, run, points)
        drawn += points
    finish_axis(axis, panel, drawn, runs)
    return hovers


def draw_budget(axis: Axes, run: Run, points: list[Point]) -> None:
    """Draw the budget over the steps of each stage, above the curves, with its value."""
    for stage in dict.fromkeys(point.stage for point in points):
        budget = run.budget(stage)
        steps = [point.step for point in points if point.stage == stage]
        if budget is not None:
            axis.plot([min(steps), max(steps)], [budget] * 2, color=INK, linestyle="--",
                      linewidth=1.1, zorder=4)  # fmt: skip
            axis.annotate(
                f"{budget:g}", (max(steps), budget), xytext=(0, 2), textcoords="offset points",
                ha="right", va="bottom", size=8,
            )  # fmt: skip


def finish_axis(axis: Axes, panel: Panel, points: list[Point], runs: list[Run]) -> None:
    """Set scales and labels, mark the ends of stages; all panels have the steps of all runs."""
    axis.set_title(literal(shorten(panel.title, 45)), pad=16)
    axis.set_xlabel("step")
    axis.set_ylabel(literal(shorten(panel.label, 45)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    last = max((run.last_step for run in runs), default=0)
    if last > 0:
        axis.set_xlim(-0.02 * last, 1.02 * last)
    for end in sorted({end for run in runs for end in run.boundaries.values()}):
        axis.axvline(end, color=FAINT, linewidth=1.1, linestyle=":", zorder=1)
    spans = sorted({span for run in runs for span in run.spans})
    for stage, begin, end in spans if len({span[0] for span in spans}) > 1 else ():
        if end - begin > 0.12 * last:  # there is no room for its name in a shorter one
            axis.annotate(
                stage, ((begin + end) / 2, 1), xycoords=axis.get_xaxis_transform(),
                xytext=(0, 1), textcoords="offset points", ha="center", va="bottom", size=8,
            )  # fmt: skip
    values = [point.value for point in points]
    if panel.column in RATES:
        axis.set_ylim(-0.03, 1.03)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif panel.log and values and min(values) > 0 and max(values) / min(values) > panel.log:
        axis.set_yscale("log")
    elif panel.band is not None and values:  # it would make the curves flat
        space = 0.3 * ((max(values) - min(values)) or 1)
        axis.set_ylim(min(values) - space, max(values) + space)
    elif panel.column in ("path_kl", "updates_per_second"):
        axis.set_ylim(bottom=0)
    if panel.column == "path_kl":
        axis.plot([], [], color=INK, linestyle="--", linewidth=1.1, label="budget")


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


def draw_picture(panel: Panel, runs: list[Run], legend: bool = True) -> Picture:
    """One panel as a picture of its own, with a legend unless there are too many runs for one."""
    with rc_context(STYLE):
        labels = len(runs) if legend and len(runs) <= LEGEND_LIMIT else 0
        rows = math.ceil(labels / 2) if labels > 1 else 0
        figure = Figure(figsize=(4.4, 3.0 + 0.2 * rows), layout="constrained")
        axis = figure.subplots()
        hovers = draw_panel(axis, panel, runs)
        if rows:
            figure.legend(loc="outside lower left", ncols=2, columnspacing=1.2, handlelength=1.8)
    return Picture(figure, hovers)


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
    with rc_context(STYLE):
        # Of no window, and not one of pyplot's, whose figures and backend are the caller's own.
        figure = Figure(figsize=(14, 7), layout="constrained")
        axes = figure.subplots(2, 3)
        for axis, panel in zip(axes.flat, panels, strict=True):
            draw_panel(axis, panel, [run])
            if not points_of(run, panel):
                axis.text(0.5, 0.5, "no values", ha="center", transform=axis.transAxes)
        title = f"{run.algorithm.label} on {run.config.get('env_name', 'unknown task')}, "
        title += f"{count_of(len(run.seeds), 'seed')} (dotted: a stage ends; dashed: budget)"
        figure.suptitle(literal(title))
        with written_whole(path) as file:
            figure.savefig(file, format="png", dpi=OVERVIEW_DPI)
