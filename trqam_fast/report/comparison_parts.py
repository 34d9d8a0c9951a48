"""Parts of a comparison's page: cells, what is missing, path KL, pictures."""

from __future__ import annotations

import base64
import math
from html import escape

from trqam_fast.report.aggregate import Estimate
from trqam_fast.report.collect import Result
from trqam_fast.report.comparison import SETTLING, Comparison, Deviation
from trqam_fast.report.comparison_figures import file_name
from trqam_fast.report.comparison_files import DASH, of
from trqam_fast.report.page import table

WORDS = {
    "diverged": "diverged", "failed": "failed", "stopped": "stopped, to be continued",
    "running": "still running", "stale": "stale", "queued": "queued",
    "unfinished": "not finished", "missing": "missing",
}  # fmt: skip
"""Everything but done, the worst first."""

PATH_KL = (
    "A line is a run; each value is the mean over a logging interval. Dashed: the budget. "
    f"Deviations are |path KL - budget| / budget after the first {SETTLING} steps of the stage. "
    "Methods without a budget show how far they drift from the first value to the last."
)


def plural(number: int, word: str) -> str:
    """Return a number of things in words."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def small(text: str) -> str:
    """A lesser text, already HTML."""
    return f'<span class="range">{text}</span>'


def percent(found: Estimate) -> str:
    """An estimate in percent with its interval, as HTML."""
    if math.isnan(found.value):
        return DASH
    text = f"{100 * found.value:.1f}"
    if not math.isnan(found.low):
        text += f' <span class="range">{100 * found.low:.1f} to {100 * found.high:.1f}</span>'
    return text


def with_zeroed(found: Estimate | None, zeroed: Estimate, failed: bool) -> str:
    """An estimate, and if runs failed below it the one in which they count as 0."""
    text = DASH if found is None else percent(found)
    if failed:
        text += f'<br><span class="bad">failed as 0:</span> {percent(zeroed)}'
    return text


def count_of(count: int, expected: int, what: str = "") -> str:
    """A count of things out of the expected ones, marked where it is short."""
    noun = f" {what}{'' if expected == 1 else 's'}" if what else ""
    text = escape(of(count, expected) + noun)
    return text if count == expected else f'<span class="bad">{text}</span>'


def render_problems(results: list[Result], notes: list[str]) -> str:
    """A box with every run that is not done, and why, and everything that was lacking."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for result in results:
        if result.status != "done":
            method = result.method or "pretraining"
            key = (result.status, method, result.task, result.reason)
            groups.setdefault(key, []).append(result.seed or "all")
    if not groups and not notes:
        return ""
    order = list(WORDS)
    keys = sorted(groups, key=lambda key: order.index(key[0]))
    heading = "Missing, failed or unfinished" if keys else "To be known"
    parts = [f'<h2>{heading}</h2><div class="problems">']
    if keys:
        columns = [
            ("seeds", [escape(" ".join(groups[key])) for key in keys], False),
            ("reason", [f'<span class="wrap">{escape(key[3])}</span>' for key in keys], False),
            ("method", [escape(key[1]) for key in keys], False),
            ("task", [escape(key[2]) for key in keys], False),
        ]
        names = [WORDS[key[0]] for key in keys]
        parts.append(table(["state"], names, columns).replace('"box"', '"box tall"', 1))
    if notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>")
    return "".join([*parts, "</div>"])


def ratio(value: float) -> str:
    """A relative deviation in percent, a dash for none."""
    return DASH if math.isnan(value) else f"{100 * value:.1f} %"


def value_of(value: float | None) -> str:
    """A number as HTML, a dash for none."""
    return DASH if value is None or math.isnan(value) else f"{value:.3g}"


def render_path_kl(c: Comparison) -> str:
    """Deviations from the budget by method and stage."""
    groups: dict[tuple[str, str], list[Deviation]] = {}
    for d in c.deviations:
        groups.setdefault((str(d.result.method), d.stage), []).append(d)
    keys = sorted(groups, key=lambda key: c.methods.index(key[0]))

    def spread(values: list[float]) -> str:
        finite = [value for value in values if not math.isnan(value)]
        ends = dict.fromkeys(value_of(end(finite)) for end in (min, max)) if finite else [DASH]
        return " to ".join(ends)

    names, columns = [f"{method}, {stage}" for method, stage in keys], []
    rows = [groups[key] for key in keys]
    budgets = [sorted({d.budget for d in row if d.budget is not None}) for row in rows]
    settled = [[d.mean_deviation for d in row if not math.isnan(d.mean_deviation)] for row in rows]
    largest = [[d.largest_deviation for d in row] for row in rows]
    columns = [
        ("runs", [str(len(row)) for row in rows], True),
        ("budget", [", ".join(f"{b:g}" for b in one) or "none" for one in budgets], True),
        ("mean deviation", [ratio(sum(d) / len(d) if d else math.nan) for d in settled], True),
        ("largest deviation", [ratio(max((d for d in row if not math.isnan(d)), default=math.nan))
                               for row in largest], True),
        ("first value", [spread([d.first for d in row]) for row in rows], True),
        ("last value", [spread([d.last for d in row]) for row in rows], True),
        ("last / first", [spread([d.drift for d in row]) for row in rows], True),
        ("last λ", [spread([d.lam for d in row]) for row in rows], True),
    ]  # fmt: skip
    return table(["method, stage"], names, columns)


def render_runs_path_kl(c: Comparison) -> str:
    """The path KL of every run."""
    rows = c.deviations
    columns = [
        ("budget", [value_of(d.budget) for d in rows], True),
        (f"mean after {SETTLING}", [value_of(d.mean) for d in rows], True),
        ("mean deviation", [ratio(d.mean_deviation) for d in rows], True),
        ("largest deviation", [ratio(d.largest_deviation) for d in rows], True),
        ("first", [value_of(d.first) for d in rows], True),
        ("last", [value_of(d.last) for d in rows], True),
        ("last / first", [value_of(d.drift) for d in rows], True),
        ("last λ", [value_of(d.lam) for d in rows], True),
        ("state", [escape(WORDS.get(d.result.status, d.result.status)) for d in rows], False),
        ("stage", [escape(d.stage) for d in rows], False),
    ]
    names = [f"{d.result.method}, {d.result.task}, seed {d.result.seed}" for d in rows]
    inner = table(["run"], names, columns).replace('"box"', '"box tall"', 1)
    return f"<details><summary>Path KL of each of the {len(rows)} runs</summary>{inner}</details>"


def of_tasks(c: Comparison, kind: str, pictures: dict[str, bytes]) -> list[tuple[str, bytes]]:
    """Pictures of one kind, in the order of the tasks."""
    names = [f"{kind}_{file_name(task)}" for task in c.tasks]
    return [(name, pictures[name]) for name in names if name in pictures]


def grid(pictures: list[tuple[str, bytes]]) -> str:
    """Pictures beside each other."""
    if not pictures:
        return ""
    figures = "".join(
        f'<figure><img alt="{escape(name.replace("_", " "))}" loading="lazy" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}"></figure>'
        for name, png in pictures
    )
    return f'<div class="grid">{figures}</div>'
