"""The page of a comparison: one HTML file with everything in it, and the other files beside it."""

from __future__ import annotations

import collections
import math
from html import escape
from pathlib import Path

from trqam_fast.errors import RunError
from trqam_fast.files import write_text
from trqam_fast.report.aggregate import REPS, Estimate, task_means
from trqam_fast.report.collect import FAILED, Result
from trqam_fast.report.comparison import ALL, COMMON, Comparison, Pair, Summary
from trqam_fast.report.comparison_figures import draw_all, short_task
from trqam_fast.report.comparison_files import (
    DASH,
    SEEDS_EACH,
    TASKS_EACH,
    UPDATES,
    improvement_csv,
    latex_table,
    measured_rates,
    of,
    path_kl_csv,
    scores_csv,
    summary_csv,
    table_domains,
)  # fmt: skip
from trqam_fast.report.comparison_parts import (
    PATH_KL,
    WORDS,
    count_of,
    grid,
    of_tasks,
    percent,
    plural,
    render_path_kl,
    render_problems,
    render_runs_path_kl,
    small,
    with_zeroed,
)
from trqam_fast.report.page import CSS, html_page, table
from trqam_fast.report.published import Published, read_published
from trqam_fast.runs.read import encodable

SCORE = (
    "A run is one seed of one method on one task. Its score is the success at the last evaluation "
    "of its last stage; BC's is that of its own run. A run that is not done has no score: it is "
    "left out of means and intervals and counted beside them. Where runs failed or diverged, the "
    "same number with a score of 0 for them stands beside it."
)
STATISTICS = (
    "IQM: interquartile mean, over the middle half of all runs of all tasks. Mean: over tasks, of "
    "the mean over each task's runs. Small: 95 % percentile interval of a stratified bootstrap, "
    f"which draws the runs of each task anew, {REPS} times (Agarwal et al. 2021, "
    "arXiv 2108.13264); with one seed there is none. It tells how much seeds vary, not tasks."
)
PAIRS = (
    "P(X > Y): how often a run of X beats a run of Y on the same task, ties counted half, averaged "
    "over the tasks that both have. 0.5 is no difference. Failed runs as 0 lose to every run that "
    "solved anything, and tie among themselves."
)
CURVES = (
    "Mean success over the runs that were evaluated at a step, unfinished ones among them, with "
    "its 95 % bootstrap interval. Step 0 is the pretrained policy. BC does not fine-tune: dotted."
)
OUR_CSS = """
.tall { max-height: 24rem; overflow-y: auto; }
.box + .grid { margin-top: 1rem; }
.problems .box { border-color: #ecd5c6; background: #fff; }
summary { cursor: pointer; margin: .6rem 0; }
td.number { line-height: 1.35; }
tbody th { min-width: 10.5rem; }
"""


def write_comparison(comparison: Comparison, results: list[Result], notes: list[str],
                     out: Path) -> Path:  # fmt: skip
    """Write ``index.html``, PNGs, CSV files and ``success.tex``.

    Args:
        comparison: What to show.
        results: Its results and those of pretraining.
        notes: Whatever was lacking when runs were read.
        out: Folder to write to; made if needed.

    Returns:
        The page, which needs none of the other files.

    Raises:
        RunError: the folder cannot be written.
    """
    published = read_published()
    texts = {
        "scores.csv": scores_csv(comparison),
        "summary.csv": summary_csv(comparison, published),
        "improvement.csv": improvement_csv(comparison),
        "path_kl.csv": path_kl_csv(comparison),
        "success.tex": latex_table(comparison, published),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = draw_all(comparison, out)
        texts["index.html"] = render(comparison, results, notes, published, pictures)
        for name, text in texts.items():
            write_text(out / name, encodable(text))
    except OSError as error:
        raise RunError(f"cannot write the report to --out {out}: {error}") from None
    return out / "index.html"


def render(
    comparison: Comparison,
    results: list[Result],
    notes: list[str],
    published: Published,
    pictures: dict[str, bytes],
) -> str:
    """Return the page."""
    c = comparison
    title = f"{plural(len(c.methods), 'method')} on {plural(len(c.tasks), 'task')}"
    states = collections.Counter(result.status for result in c.results)
    total = f"{plural(len(c.results) - states['missing'], 'run')}: {states['done']} done"
    total += "".join(f", {states[name]} {words}" for name, words in WORDS.items() if states[name])
    heads = [name for name in ("intervals", "profiles", "improvement") if name in pictures]
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="note">{escape(total)}</p>',
        render_problems(results, notes),
        f"<h2>Success</h2><p>{SCORE}</p>",
        render_overall(c),
        f'<p class="note">{STATISTICS}</p>',
        grid([(name, pictures[name]) for name in heads]),
        "<h2>By domain</h2>",
        render_domains(c),
        "<h2>Beside the published table</h2>",
        render_published(c, published),
        "<h2>By task</h2>",
        render_tasks(c),
        f"<h2>Probability of improvement</h2>{render_pairs(c)}" if c.pairs else "",
        f"<h2>Learning curves</h2><p>{CURVES}</p>",
        grid(of_tasks(c, "curves", pictures)) or "<p>Nothing was evaluated yet.</p>",
    ]
    if c.deviations:
        parts += [
            f"<h2>Path KL</h2><p>{PATH_KL}</p>",
            render_path_kl(c),
            grid(of_tasks(c, "path_kl", pictures)),
            render_runs_path_kl(c),
        ]
    return html_page(title, CSS + OUR_CSS, parts)


def render_overall(c: Comparison) -> str:
    """Aggregates over all tasks, and over those that every method has."""
    columns = []
    for group in [name for name in (ALL, COMMON) if name in c.groups]:
        rows = [c.summaries[name, group] for name in c.methods]
        where = f", {plural(len(c.groups[group]), 'common task')}" if group == COMMON else ""
        if group == ALL:
            columns += overall_counts(rows)
        columns += [
            (
                f"IQM, %{where}",
                [with_zeroed(s.iqm, s.iqm_zeroed, s.failed > 0) for s in rows],
                True,
            ),
            (
                f"mean, %{where}",
                [with_zeroed(s.mean, s.mean_zeroed, s.failed > 0) for s in rows],
                True,
            ),
        ]
    note = ""
    if COMMON in c.groups:
        note = (
            '<p class="note">The methods have scores on different tasks. Only the columns of '
            "common tasks compare them on the same ones.</p>"
        )
    counted, numbers = columns[:6], columns[6:]
    return table(["measured here"], c.methods, numbers + counted) + note


def overall_counts(rows: list[Summary]) -> list[tuple[str, list[str], bool]]:
    """Columns that say what the aggregates rest on."""
    failed = [f'<span class="bad">{s.failed}</span>' if s.failed else "0" for s in rows]
    return [
        ("tasks", [count_of(s.tasks, s.tasks_expected) for s in rows], True),
        ("runs", [count_of(s.runs, s.runs_expected) for s in rows], True),
        ("failed runs", failed, True),
        ("seeds for each task", [escape(s.seeds) for s in rows], True),
        ("updates", [escape(s.updates) or DASH for s in rows], False),
        ("data", [escape(s.data) or DASH for s in rows], False),
    ]


def render_domains(c: Comparison) -> str:
    """Aggregates of each domain."""
    columns = []
    for method in c.methods:
        cells = []
        for domain in c.domains:
            s = c.summaries[method, domain]
            cells.append(
                f"IQM {with_zeroed(s.iqm, s.iqm_zeroed, s.failed > 0)}<br>"
                f"mean {with_zeroed(s.mean, s.mean_zeroed, s.failed > 0)}<br>"
                f'<span class="range">{count_of(s.runs, s.runs_expected, "run")}, '
                f"{count_of(s.tasks, s.tasks_expected, 'task')}</span>"
            )
        columns.append((f"{method}, %", cells, True))
    return table(["domain"], c.domains, columns)


def render_published(c: Comparison, published: Published) -> str:
    """The published table and below it our means, each marked as what it is."""
    ours, zeroed = (measured_rates(c, published, zeroed) for zeroed in (False, True))
    words = f"{TASKS_EACH} tasks for each domain, {SEEDS_EACH} seeds, {UPDATES} updates"
    kinds = [f"published<br>{small(words)}"] * len(published.rates)
    for method in c.methods:
        s = c.summaries[method, ALL]
        parts = [f"{of(s.tasks, s.tasks_expected)} tasks", f"{s.seeds} seeds"]
        parts += [f"{s.updates} updates"] * bool(s.updates) + [s.data] * bool(s.data)
        kinds.append(f"<strong>measured here</strong><br>{small(escape(', '.join(parts)))}")
    columns = [("tasks, seeds, updates", kinds, False)]
    for name in [*table_domains(c, published), ALL]:
        cells = []
        for rates in published.rates.values():
            rate = rates.get(name)
            cell = DASH if rate is None else f"{rate.mean:.0f}"
            if rate is not None and rate.deviation is not None:
                cell += f" {small(f'± {rate.deviation:.0f}')}"
            cells.append(cell)
        for method in c.methods:
            found = ours[method].get(name)
            cells.append(DASH if found is None else percent(found))
            if name in zeroed[method] and c.summaries[method, name].failed:
                cells[-1] = with_zeroed(found, zeroed[method][name], failed=True)
            if found is not None and name != ALL:
                s = c.summaries[method, name]
                if s.tasks < TASKS_EACH or s.runs < s.runs_expected:
                    runs = f"{of(s.runs, s.runs_expected)} runs, {plural(s.tasks, 'task')}"
                    cells[-1] += f'<br><span class="bad">{runs}</span>'
        columns.append((f"mean of {len(published.domains)}" if name == ALL else name, cells, True))
    source = " ".join(published.source)
    return (
        table(["success, %"], [*published.rates, *c.methods], columns)
        + f'<p class="note">Published: {escape(source)} Measured here: mean over tasks and seeds '
        "with its 95 % bootstrap interval. An em dash: there is no number. The mean of the "
        f"published {len(published.domains)} domains is given for ours only where each of their "
        "tasks has a score. The two kinds are never averaged together, and compare only where "
        "tasks, updates and data are the same.</p>"
    )


def pretrained(c: Comparison, task: str) -> str:
    """The mean success that fine-tuning starts from on a task, if methods agree on it."""
    found = [values for (name, _), values in c.starts.items() if name == task and values]
    if any(len(values) > 1 for values in found):
        return '<span class="bad">differs</span>'
    return f"{100 * sum(values[0] for values in found) / len(found):.1f}" if found else DASH


def render_tasks(c: Comparison) -> str:
    """Success on each task, with the number of seeds."""
    starts = [pretrained(c, task) for task in c.tasks]
    columns = [("pretrained", starts, True)]
    for method in c.methods:
        means, zeroed = task_means(c.scores[method]), task_means(c.zeroed[method])
        cells = []
        for task, value, other in zip(c.tasks, means, zeroed, strict=True):
            results = c.of(method, task)
            scored = sum(not math.isnan(result.success) for result in results)
            cell = DASH if math.isnan(value) else f"{100 * value:.1f}"
            if any(result.status in FAILED for result in results):
                cell += f' <span class="bad">failed as 0: {100 * other:.1f}</span>'
            expected = sum(result.seed != "" for result in results)
            seeds = count_of(scored, expected, "seed")
            if expected == 0:
                seeds = '<span class="bad">no run</span>'
            cells.append(f'{cell}<br><span class="range">{seeds}</span>')
        columns.append((method, cells, True))
    return table(["success, %"], [short_task(task) for task in c.tasks], columns)


def render_pairs(c: Comparison) -> str:
    """The probability of improvement of every pair."""
    cells = []
    for pair in c.pairs:
        text = share(pair.probability)
        if any(pair.failed):
            text += f'<br><span class="bad">failed as 0:</span> {share(pair.zeroed)}'
        cells.append(text)
    columns = [
        ("P(X > Y)", cells, True),
        ("tasks", [tasks_of(pair) for pair in c.pairs], True),
        ("runs of X", [runs_of(pair, 0) for pair in c.pairs], True),
        ("runs of Y", [runs_of(pair, 1) for pair in c.pairs], True),
    ]
    names = [f"{pair.first} > {pair.second}" for pair in c.pairs]
    return f"<p>{PAIRS}</p>" + table(["X > Y"], names, columns)


def share(found: Estimate) -> str:
    """A probability with its interval, as HTML."""
    text = DASH if math.isnan(found.value) else f"{found.value:.3f}"
    if not math.isnan(found.low):
        text += f' <span class="range">{found.low:.3f} to {found.high:.3f}</span>'
    return text


def tasks_of(pair: Pair) -> str:
    """On how many tasks both have a score, and on how many with failed runs as 0 if on more."""
    text = str(pair.tasks)
    if pair.tasks_zeroed > pair.tasks:
        text += f'<br><span class="bad">{pair.tasks_zeroed}</span>'
    return text


def runs_of(pair: Pair, which: int) -> str:
    """How many runs of X (0) or Y (1) have a score, and how many failed."""
    text = str(pair.runs[which])
    if pair.failed[which]:
        text += f'<br><span class="bad">{pair.failed[which]} failed</span>'
    return text
