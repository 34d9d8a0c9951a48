"""Draws what an experiment says, in the colours of the algorithms."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter

from benchmarks.evidence.e1 import CELLS, SETTINGS, read_cell, values_of
from benchmarks.evidence.tables import MEASURES
from trqam_fast.agents import ALGORITHMS
from trqam_fast.report.svg import alone, svg_of
from trqam_fast.runs.looks import FAINT, INK, PAPER, STYLE, looks
from trqam_fast.runs.plots import Picture
from trqam_fast.training.domains import domain_of

SHIFT = 0.1
"""By which the points of fresh seeds are beside each other."""


def draw_e1(found: dict[str, Any]) -> Figure:
    """Draw score against setting, a panel for each cell and a curve for each algorithm.

    Filled points are the selection's means. Hollow ones are the fresh seeds of settings that some
    reading chose.
    """
    figure, panels = plt.subplots(1, len(CELLS), figsize=(10, 4), layout="constrained", sharey=True)
    for cell, axes in zip(CELLS, panels, strict=True):
        for index, algo in enumerate(SETTINGS):
            draw_curve(axes, found, cell, algo, SHIFT * (index - 0.5))
        task = domain_of(read_cell(cell)["tasks"][0])
        scale = read_cell(cell)["flags"].get("reward_scale", 1.0)
        times = f",\nrewards × {scale:g}" if scale != 1 else ""
        axes.set_title(f"cell {cell}: {task}{times}")
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        pairs = zip(values_of(cell, "qam"), values_of(cell, "trqam"), strict=True)
        labels = [f"{temperature:g}\n{budget:g}" for temperature, budget in pairs]
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlabel("QAM's inv_temp above,\nTRQAM's kl_budget below")
    panels[0].set_ylabel("score")
    handles, labels = panels[0].get_legend_handles_labels()
    handles.append(Line2D([], [], marker="D", color=INK, markerfacecolor=PAPER, linestyle="none"))
    labels.append("fresh seeds, 95 %")
    figure.legend(handles, labels, loc="outside lower left", ncols=4)
    return figure


def draw_curve(axes: Axes, found: dict[str, Any], cell: str, algo: str, shift: float) -> None:
    """Draw one algorithm in one cell, what is confirmed a little to one side."""
    values, colour = values_of(cell, algo), ALGORITHMS[algo].colour
    means = found["selection"][cell][algo]
    heights = [means.get(value, np.nan) for value in values]
    axes.plot(range(len(values)), heights, "-o", color=colour, markersize=4,
              label=ALGORITHMS[algo].label)  # fmt: skip
    confirmed = {}
    for reading in found["readings"].values():
        if cell in reading["scores"].get(algo, {}):
            setting = reading["settings"][algo][cell]
            confirmed[setting] = reading["scores"][algo][cell]
    for setting, scores in confirmed.items():
        mean, (low, high) = scores["score"], scores["interval"]
        axes.errorbar(values.index(setting) + shift, mean, [[mean - low], [high - mean]],
                      marker="D", color=colour, markersize=6, markerfacecolor=PAPER, capsize=2,
                      zorder=4)  # fmt: skip


def draw_mechanism(found: dict[str, Any]) -> Figure:
    """Draw success and what the log says of the mechanism over the updates, by method.

    What others published of the task stands beside it, hollow, with its deviation over seeds.
    """
    figure, panels = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    algos = {algo.label: algo for algo in ALGORITHMS.values()}
    methods = list(found["curves"])
    look_of = looks(algos[method.partition(" ")[0]].colour for method in methods)
    titles = {"success": "success"} | MEASURES
    for column, axes in zip(("success", "path_kl", "adjoint_gain", "value_gap"), panels.flat,
                            strict=True):  # fmt: skip
        for method, look in zip(methods, look_of, strict=True):
            points = found["curves"][method][column]
            steps, values = zip(*points, strict=True) if points else ((), ())
            axes.plot(steps, values, label=method, linewidth=1.4, **look.line)
        axes.set_title(titles[column])
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("updates")
    for name, curve in found.get("published", {}).items():
        panels[0, 0].errorbar(curve["step"], curve["success"], curve["deviation"], label=name,
                              marker="D", color=INK, markerfacecolor=PAPER, linestyle=":",
                              capsize=2)  # fmt: skip
    panels[0, 0].set_ylim(-0.03, 1.03)
    panels[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
    return figure


def draw_e3(found: dict[str, Any]) -> Figure:
    """Draw the differences to the paper's start with their intervals."""
    compared = found["differences"]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.3 * len(compared)), layout="constrained")
    colour = ALGORITHMS["trqam"].colour
    for row, values in enumerate(compared.values()):
        axes.plot([100 * values["low"], 100 * values["high"]], [row, row], color=colour)
        axes.plot(100 * values["mean"], row, "o", color=colour)
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.set_yticks(range(len(compared)), [name.removeprefix("TRQAM ") for name in compared])
    axes.set_ylim(max(1, len(compared)) - 0.5, -0.5)
    axes.set_title("Score less the paper's start")
    axes.set_xlabel("points of success, 95 % interval")
    axes.grid(axis="y", visible=False)
    return figure


DRAWINGS = {"e1": draw_e1, "e2": draw_mechanism, "e3": draw_e3, "e4": draw_mechanism}


def drawing(experiment: str, found: dict[str, Any]) -> str:
    """Return the picture of an experiment as an SVG file; a partial one says so."""
    with plt.rc_context(STYLE):
        figure = DRAWINGS[experiment](found)
        if not found["complete"]:
            figure.suptitle("PARTIAL: not all planned runs are over", color=INK, size=10)
        return alone(svg_of(Picture(figure, []), experiment, f"Experiment {experiment}"))
