"""Draws a comparison: intervals, profiles, pairs, and curves of each task."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from trqam_fast.report.aggregate import bootstrap, counts, limits, profile, task_means
from trqam_fast.report.comparison import ALL, Comparison, short_task
from trqam_fast.runs.looks import FAINT, INK, PAPER, SHADE, STYLE
from trqam_fast.runs.plots import (
    LOG_RATIO,
    SEEDS_DRAWN,
    Hover,
    Picture,
    label_of,
    literal,
    shorten,
)

BAND_REPS = 1000
PROFILE_REPS = 2000
TAUS = np.linspace(0.0, 1.0, 51)
WIDTH = 4.4
TOP, LEGEND_ROW = 0.32, 0.2
LONGEST_PAIR = 26
"""Letters of a pair's names in one line."""
ZEROED = (0, (4, 1.5))
"""Dashes of what has failed runs as 0."""


def in_percent(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """Return a share with its interval in words."""
    interval = "" if math.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f} %{interval}"


def new_figure(
    title: str, rows: list[float], entries: int, width: float = WIDTH, left: float = 0.72
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels below each other, with room for a legend below them.

    Args:
        title: Heading.
        rows: Height of each panel in inches.
        entries: Of the legend, two in a row.
        width: Of the figure in inches.
        left: Room for the labels in inches.
    """
    gap, foot = 0.25, 0.5 + LEGEND_ROW * math.ceil(entries / 2)
    height = TOP + sum(rows) + gap * (len(rows) - 1) + foot
    figure = Figure(figsize=(width, height))
    figure.text(0.1 / width, 1 - 0.09 / height, literal(shorten(title, round(13 * width))),
                va="top", weight="bold", size=11)  # fmt: skip
    axes, top = [], height - TOP
    for row in rows:
        top -= row
        box = (left / width, top / height, 1 - (left + 0.12) / width, row / height)
        axes.append(figure.add_axes(box))
        top -= gap
    return figure, axes


def add_legend(figure: Figure, axes: list[Axes]) -> None:
    """Put the labels of all panels below them, each once."""
    found: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(
            found.values(), found.keys(), loc="lower left", ncols=2, columnspacing=1.2,
            handlelength=1.8, borderaxespad=0.2, labelspacing=0.25,
        )  # fmt: skip


def steps_axis(axis: Axes, label: str = "fine-tuning step") -> None:
    """Set the axis of steps."""
    axis.set_xlabel(label)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))


def failed_runs(comparison: Comparison, method: str) -> int:
    """Return the number of a method's runs that failed or diverged."""
    return comparison.summaries[method, ALL].failed


def draw_intervals(comparison: Comparison) -> Picture:
    """Interquartile mean of each method, with its interval, over all tasks and each domain.

    Where runs failed, a hollow point has them as 0.
    """
    groups, methods = list(comparison.groups), comparison.methods
    height = max(1.2, len(groups) * (0.1 * len(methods) + 0.08))
    any_failed = any(failed_runs(comparison, name) for name in methods)
    figure, (axis,) = new_figure(
        "Success, interquartile mean", [height], len(methods) + any_failed, width=5.2, left=1.9
    )
    hovers = []
    for row, group in enumerate(groups):
        for number, method in enumerate(methods):
            s = comparison.summaries[method, group]
            place = row + 0.8 * ((number + 0.5) / len(methods) - 0.5)
            colour = comparison.looks[method].colour
            if not math.isnan(s.iqm.value):
                text = f"{method}, {group}: interquartile mean {in_percent(*s.iqm)}"
                hovers.append(Hover(axis, s.iqm.value, place, text))
                axis.plot([s.iqm.value], [place], "o", color=colour, markersize=4,
                          label=label_of(method))  # fmt: skip
                axis.plot([s.iqm.low, s.iqm.high], [place] * 2, color=colour, linewidth=2.5,
                          alpha=0.6)  # fmt: skip
            if s.failed:
                axis.plot([s.iqm_zeroed.value], [place], "o", color=colour, markersize=5,
                          markerfacecolor=PAPER, zorder=3)  # fmt: skip
                axis.plot([s.iqm_zeroed.low, s.iqm_zeroed.high], [place] * 2, color=colour,
                          linewidth=1, linestyle=ZEROED)  # fmt: skip
        if row % 2 == 0:
            axis.axhspan(row - 0.5, row + 0.5, color=SHADE, zorder=0)
    if any_failed:
        axis.plot([], [], "o", color=INK, markersize=5, markerfacecolor=PAPER,
                  linestyle=ZEROED, linewidth=1, label="failed runs as 0")  # fmt: skip
    axis.set_yticks(range(len(groups)), [literal(shorten(name, 24)) for name in groups])
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.set_xlim(-0.02, 1.02)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("episodes solved")
    add_legend(figure, [axis])
    return Picture(figure, hovers)


def draw_profiles(comparison: Comparison) -> Picture:
    """Share of runs whose success is above each threshold; thin lines have failed runs as 0."""
    any_failed = any(failed_runs(comparison, name) for name in comparison.methods)
    figure, (axis,) = new_figure(
        "Performance profiles", [2.5], len(comparison.methods) + any_failed, width=5.2
    )
    hovers = []
    for method in comparison.methods:
        scores, style = comparison.scores[method], comparison.looks[method].line
        if failed_runs(comparison, method):
            axis.plot(TAUS, profile(comparison.zeroed[method], TAUS), color=style["color"],
                      linewidth=1.2, linestyle=ZEROED)  # fmt: skip
        if np.isnan(scores).all():
            continue
        shares = profile(scores, TAUS)
        axis.plot(TAUS, shares, label=label_of(method), linewidth=1.6, **style)
        hovers += [
            Hover(axis, tau, share, f"{method}: {share:.0%} of runs above {tau:.0%}")
            for tau, share in zip(TAUS[::5], shares[::5], strict=True)
        ]
        if counts(scores).max() > 1:
            samples = bootstrap(lambda drawn: profile(drawn, TAUS), scores, reps=PROFILE_REPS)
            axis.fill_between(TAUS, *limits(samples), color=style["color"], alpha=0.15, linewidth=0)
    if any_failed:
        axis.plot([], [], color=INK, linewidth=1.2, linestyle=ZEROED,
                  label="failed runs as 0")  # fmt: skip
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("success τ")
    axis.set_ylabel("runs with success > τ")
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter(PercentFormatter(1.0))
    add_legend(figure, [axis])
    return Picture(figure, hovers)


def draw_pairs(comparison: Comparison) -> Picture:
    """Probability of improvement of the first method of each pair over the second.

    Where runs failed, a second bar below has them as 0.
    """
    pairs = [pair for pair in comparison.pairs if pair.tasks_zeroed]
    names = [f"{shorten(pair.first, 21)} > {shorten(pair.second, 21)}" for pair in pairs]
    high = 0.3
    if max(map(len, names)) > LONGEST_PAIR:
        names, high = [name.replace(" > ", " >\n") for name in names], 0.42
    left = 0.35 + 0.095 * max(len(line) for name in names for line in name.split("\n"))
    any_failed = any(any(pair.failed) for pair in pairs)
    figure, (axis,) = new_figure(
        "Probability of improvement, P(X > Y)", [max(0.6, high * len(pairs))],
        2 * any_failed, 5.2, left,
    )  # fmt: skip
    hovers = []
    for row, pair in enumerate(pairs):
        shift = 0.17 if any(pair.failed) else 0.0
        bars = [(row - shift, pair.probability, INK, "runs with a score")]
        if shift:
            bars.append((row + shift, pair.zeroed, FAINT, "failed runs as 0"))
        for place, (value, low, high), colour, label in bars:
            text = f"P({pair.first} > {pair.second}), {label}: {value:.2f}"
            text += "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
            hovers.append(Hover(axis, value, place, text))
            axis.plot([low, high], [place] * 2, color=colour, linewidth=6, alpha=0.35,
                      solid_capstyle="butt")  # fmt: skip
            axis.plot([value], [place], "|", color=colour, markersize=8 if shift else 14,
                      markeredgewidth=2, label=label if any_failed else None)  # fmt: skip
    labels = ["\n".join(map(literal, name.split("\n"))) for name in names]
    axis.set_yticks(range(len(pairs)), labels)
    axis.set_ylim(len(pairs) - 0.4, -0.6)
    axis.set_xlim(-0.02, 1.02)
    axis.axvline(0.5, color=FAINT, linewidth=1.2, linestyle=":")
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("probability")
    add_legend(figure, [axis])
    return Picture(figure, hovers)


def draw_curves(comparison: Comparison, task: str) -> Picture | None:
    """Success of each method over the steps on one task, None where nothing was evaluated.

    Thin lines are single seeds.
    """
    shown = [m for m in comparison.methods if any(r.curve for r in comparison.of(m, task))]
    if not shown:
        return None
    figure, (axis,) = new_figure(short_task(task), [2.2], len(shown))
    hovers = []
    for method in shown:
        results = comparison.of(method, task)
        steps = sorted({step for result in results for step, _ in result.curve})
        grid = np.full((len(results), len(steps)), math.nan)
        for row, result in enumerate(results):
            for step, success in result.curve:
                grid[row, steps.index(step)] = success
        style, means = comparison.looks[method].line, task_means(grid)
        for step, value in zip(steps, means, strict=True):
            text = f"{method}, {short_task(task)}, step {step:,}: {in_percent(value)}"
            hovers.append(Hover(axis, step, value, text))
        if not results[0].algorithm.fine_tunes:
            axis.axhline(means[-1], label=label_of(f"{method}, at its end"),
                         linewidth=1.4, color=style["color"], linestyle=(0, (1, 1.2)))  # fmt: skip
            continue
        axis.plot(steps, means, label=label_of(method), linewidth=1.6, zorder=3,
                  marker="o" if len(steps) < 3 else None, markersize=3, **style)  # fmt: skip
        for result in results if 1 < len(results) <= SEEDS_DRAWN else []:
            axis.plot(*zip(*result.curve, strict=True), color=style["color"], linewidth=0.6,
                      alpha=0.4, zorder=2)  # fmt: skip
        if counts(grid).max() > 1:
            samples = bootstrap(task_means, grid, reps=BAND_REPS)
            axis.fill_between(steps, *limits(samples), color=style["color"], alpha=0.15,
                              linewidth=0)  # fmt: skip
    axis.set_ylim(-0.03, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylabel("episodes solved")
    steps_axis(axis)
    add_legend(figure, [axis])
    return Picture(figure, hovers)


def draw_path_kl(comparison: Comparison, task: str) -> Picture | None:
    """Path KL of every run on one task against its budget, and lambda where it moves."""
    shown = {
        method: [track for result in comparison.of(method, task) for track in result.tracking]
        for method in comparison.methods
    }
    shown = {method: tracks for method, tracks in shown.items() if tracks}
    if not shown:
        return None
    moving = any(track.lam for tracks in shown.values() for track in tracks)
    budgets = any(track.budget is not None for tracks in shown.values() for track in tracks)
    figure, axes = new_figure(
        short_task(task), [1.9, 1.2] if moving else [1.9], len(shown) + budgets
    )
    hovers = []
    for method, tracks in shown.items():
        style = comparison.looks[method].line | {"linewidth": 0.9, "alpha": 0.7}
        for number, track in enumerate(tracks):
            label = label_of(method) if number == 0 else None
            steps = [track.start + step for step in track.steps]
            axes[0].plot(steps, track.path_kl, label=label, **style)
            for place in range(0, len(steps), -(-len(steps) // 20)):
                step, value = steps[place], track.path_kl[place]
                text = f"{method}, {track.stage}, step {step:,}: path KL {value:.3g}"
                hovers.append(Hover(axes[0], step, value, text))
            if track.lam:
                axes[1].plot(steps, track.lam, **style)
        for start, end, budget in budget_lines(tracks):
            axes[0].plot([start, end], [budget] * 2, color=INK, linestyle="--",
                         linewidth=1.1, zorder=4, label="budget")  # fmt: skip
            axes[0].annotate(f"{budget:g}", (end, budget), xytext=(2, 0), size=8, va="center",
                             textcoords="offset points")  # fmt: skip
    axes[0].set_ylabel("path KL, nats")
    if logarithmic(comparison):
        axes[0].set_yscale("log")
    else:
        axes[0].set_ylim(bottom=0)
    if moving:
        axes[0].tick_params(labelbottom=False)
        axes[1].set_ylabel("λ")
        axes[1].set_xlim(axes[0].get_xlim())
        axes[1].set_ylim(bottom=0)
    steps_axis(axes[0])
    steps_axis(axes[-1])
    if moving:
        axes[0].set_xlabel("")
    add_legend(figure, axes)
    return Picture(figure, hovers)


def logarithmic(comparison: Comparison) -> bool:
    """Whether path KL has a logarithmic axis, on all tasks or on none."""
    tracks = [track for result in comparison.results for track in result.tracking]
    values = [value for track in tracks for value in track.path_kl]
    return min(values) > 0 and max(values) / min(values) > LOG_RATIO


def budget_lines(tracks: list[Any]) -> set[tuple[int, int, float]]:
    """Return the first and last step and the value of each budget, each once."""
    return {
        (track.start, track.start + track.steps[-1], track.budget)
        for track in tracks
        if track.budget is not None
    }


def draw_all(comparison: Comparison) -> dict[str, Picture]:
    """Return every picture by name."""
    with plt.rc_context(STYLE):
        figures: dict[str, Callable[[], Picture | None]] = {
            "intervals": lambda: draw_intervals(comparison),
            "profiles": lambda: draw_profiles(comparison),
        }
        if any(pair.tasks_zeroed for pair in comparison.pairs):
            figures["improvement"] = lambda: draw_pairs(comparison)
        for task in comparison.tasks:
            name = file_name(task)
            figures[f"curves_{name}"] = functools.partial(draw_curves, comparison, task)
            figures[f"path_kl_{name}"] = functools.partial(draw_path_kl, comparison, task)
        drawn = {name: draw() for name, draw in figures.items()}
    return {name: picture for name, picture in drawn.items() if picture is not None}


def file_name(task: str) -> str:
    """Return a task as a part of a file's name."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in task)[:100]
