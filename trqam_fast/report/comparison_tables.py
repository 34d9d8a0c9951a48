"""The tables of a comparison: those of its page, its CSV files and its LaTeX table.

Longer than 400 lines, as each of a dozen tables is a function and they share how cells are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trqam_fast.report.aggregate import Estimate, counts, task_means
from trqam_fast.report.collect import FAILED, Result, Status
from trqam_fast.report.comparison import (
    ALL,
    COMMON,
    SETTLING,
    Comparison,
    Deviation,
    Summary,
    short_task,
)
from trqam_fast.report.published import Published, Rate
from trqam_fast.report.settings import settings_of
from trqam_fast.report.table import (
    DASH,
    LONGEST,
    Cell,
    Column,
    Part,
    Table,
    bad,
    cell,
    hidden,
    small,
    words,
)
from trqam_fast.text import count_of, printable
from trqam_fast.training.presets import flag_of, value_in_words

WORDS: dict[Status, str] = {
    "diverged": "diverged", "failed": "failed", "stopped": "stopped, to be continued",
    "running": "still running", "stale": "stale", "queued": "queued",
    "unfinished": "not finished", "missing": "missing",
}  # fmt: skip
"""Everything but done, the worst first."""
TASKS_EACH, SEEDS_EACH, UPDATES = 5, 8, "1M"
"""Of the published numbers."""
ENDS = ("", "_low", "_high")


def of(count: int, expected: int) -> str:
    """Return a count, and out of how many if that is more."""
    return str(count) if count == expected else f"{count} of {expected}"


def short_of(count: int, expected: int, what: str = "") -> Part:
    """Return a count of things out of the expected ones, marked where it is short."""
    text = of(count, expected) + (f" {what}{'' if expected == 1 else 's'}" if what else "")
    return Part(text) if count == expected else bad(text)


def percent(found: Estimate | None) -> list[Part]:
    """Return an estimate in percent with its interval."""
    return shown(found, 100, ".1f")


def share(found: Estimate) -> list[Part]:
    """Return a probability with its interval."""
    return shown(found, 1, ".2f")


def shown(found: Estimate | None, scale: float, form: str) -> list[Part]:
    """Return an estimate as text, and its interval as a lesser one."""
    if found is None or math.isnan(found.value):
        return [Part(DASH)]
    value, low, high = (format(scale * part, form) for part in found)
    return [Part(value)] if math.isnan(found.low) else [Part(value), small(f"[{low}, {high}]")]


def zeroed_below(lines: list[Part], zeroed: list[Part], failed: bool) -> list[list[Part]]:
    """Return a line, and if runs failed below it the one in which they count as 0."""
    return [lines, [bad("failed as 0:"), *zeroed]] if failed else [lines]


def scores(c: Comparison) -> Table:
    """One row for each method, task and seed, whatever became of it; for a CSV file."""
    columns: dict[str, list[Any]] = {
        "method": [r.method for r in c.results],
        "algo": [r.algo for r in c.results],
        "task": [r.task for r in c.results],
        "domain": [r.domain for r in c.results],
        "seed": [r.seed for r in c.results],
        "status": [r.status for r in c.results],
        "success": [r.success for r in c.results],
        "start": [c.start_of(r) for r in c.results],
        "updates": [r.updates for r in c.results],
        "data": [r.data for r in c.results],
        "reason": [r.reason for r in c.results],
        "folder": [r.folder for r in c.results],
    }
    return Table([hidden(name, fields) for name, fields in columns.items()])


def summaries(c: Comparison, published: Published) -> Table:
    """The aggregates, measured and published, from 0 to 1; for a CSV file."""
    labels = ("kind", "method", "group", "tasks", "tasks_expected", "runs", "runs_expected",
             "failed", "seeds_per_task", "updates", "data")  # fmt: skip
    numbers = ("mean", "iqm", "mean_failed_as_0", "iqm_failed_as_0")
    rows: list[list[Any]] = []
    for s in c.summaries.values():
        found = (s.mean, s.iqm, s.mean_zeroed, s.iqm_zeroed)
        rows.append(
            [
                "measured here", s.method, s.group, s.tasks, s.tasks_expected, s.runs,
                s.runs_expected, s.failed, s.seeds, s.updates, s.data,
                *(end for one in found for end in one), None,
            ]
        )  # fmt: skip
    for method, rates in published.rates.items():
        for group, rate in rates.items():
            tasks = TASKS_EACH * (len(published.domains) if group == ALL else 1)
            runs = tasks * SEEDS_EACH
            deviation = None if rate.deviation is None else rate.deviation / 100
            rows.append(
                [
                    "published", method, group, tasks, tasks, runs, runs, None, SEEDS_EACH, UPDATES,
                    "published", rate.mean / 100, *[None] * 11, deviation,
                ]
            )  # fmt: skip
    names = (*labels, *(f"{name}{end}" for name in numbers for end in ENDS), "std_over_seeds")
    fields = zip(*rows, strict=True)
    return Table([hidden(name, list(one)) for name, one in zip(names, fields, strict=True)])


def pairs(c: Comparison) -> Table:
    """The probability of improvement of every pair, also with failed runs as 0."""

    def tasks(pair: Any) -> list[Part | str]:
        lines: list[Part | str] = [str(pair.tasks)]
        return lines + [bad(str(pair.tasks_zeroed))] * (pair.tasks_zeroed > pair.tasks)

    def runs(which: int) -> list[Cell]:
        return [
            cell(str(p.runs[which]), *[bad(f"{p.failed[which]} failed")] * (p.failed[which] > 0),
                 fields=[p.runs[which]])
            for p in c.pairs
        ]  # fmt: skip

    probabilities = [
        cell(*zeroed_below(share(p.probability), share(p.zeroed), any(p.failed)),
             fields=p.probability)
        for p in c.pairs
    ]  # fmt: skip
    return Table(
        [
            words("X > Y", [f"{p.first} > {p.second}" for p in c.pairs]),
            hidden("x", [p.first for p in c.pairs]),
            hidden("y", [p.second for p in c.pairs]),
            Column("tasks", [cell(*tasks(p), fields=[p.tasks]) for p in c.pairs], ("tasks",)),
            Column("runs of X", runs(0), ("x_runs",)),
            Column("runs of Y", runs(1), ("y_runs",)),
            hidden("x_failed", [p.failed[0] for p in c.pairs]),
            hidden("y_failed", [p.failed[1] for p in c.pairs]),
            Column("P(X > Y)", probabilities, tuple(f"probability{end}" for end in ENDS)),
            hidden("tasks_failed_as_0", [p.tasks_zeroed for p in c.pairs]),
            *(
                hidden(f"probability_failed_as_0{end}", [p.zeroed[number] for p in c.pairs])
                for number, end in enumerate(ENDS)
            ),
        ]
    )


def path_kl(c: Comparison) -> Table:
    """How the path KL of every run went."""

    def numbers(heading: str, name: str, values: Sequence[float | None], form: Any) -> Column:
        cells = [cell(form(value), fields=[value]) for value in values]
        return Column(heading, cells, (name,))

    rows = c.deviations
    runs = [f"{d.result.method}, {d.result.task}, seed {d.result.seed}" for d in rows]
    states = [WORDS.get(d.result.status, d.result.status) for d in rows]
    return Table(
        [
            words("run", runs),
            words("state", states),
            hidden("method", [d.result.method for d in rows]),
            hidden("task", [d.result.task for d in rows]),
            hidden("seed", [d.result.seed for d in rows]),
            hidden("status", [d.result.status for d in rows]),
            words("stage", [d.stage for d in rows], "stage"),
            numbers("budget", "budget", [d.budget for d in rows], rounded),
            numbers("first", "first", [d.first for d in rows], rounded),
            numbers("last", "last", [d.last for d in rows], rounded),
            numbers(f"mean after {SETTLING}", f"mean_after_{SETTLING}", [d.mean for d in rows],
                    rounded),
            numbers("mean deviation", "mean_relative_deviation", [d.mean_deviation for d in rows],
                    ratio),
            numbers("largest deviation", "largest_relative_deviation",
                    [d.largest_deviation for d in rows], ratio),
            numbers("last / first", "last_over_first", [d.drift for d in rows], rounded),
            numbers("last λ", "last_lambda", [d.lam for d in rows], rounded),
        ]
    )  # fmt: skip


def rounded(value: float | None) -> str:
    """Return a number with three digits, a dash for none."""
    return DASH if value is None or math.isnan(value) else f"{value:.3g}"


def ratio(value: float) -> str:
    """Return a relative deviation in percent, a dash for none."""
    return DASH if math.isnan(value) else f"{100 * value:.1f} %"


def spread(values: Sequence[float]) -> str:
    """Return the smallest and the largest of some numbers."""
    finite = [value for value in values if not math.isnan(value)]
    ends = [rounded(end(finite)) for end in (min, max)] if finite else [DASH]
    return " to ".join(dict.fromkeys(ends))


def path_kl_of_methods(c: Comparison) -> Table:
    """Deviations from the budget by method and stage."""
    groups: dict[tuple[str, str], list[Deviation]] = {}
    for d in c.deviations:
        groups.setdefault((str(d.result.method), d.stage), []).append(d)
    keys = sorted(groups, key=lambda key: c.methods.index(key[0]))
    rows = [groups[key] for key in keys]

    def number(heading: str, texts: list[str]) -> Column:
        return Column(heading, [cell(text) for text in texts])

    def finite(row: list[Deviation], name: str) -> list[float]:
        return [value for d in row if not math.isnan(value := getattr(d, name))]

    means = [finite(row, "mean_deviation") for row in rows]
    budgets = [sorted({d.budget for d in row if d.budget is not None}) for row in rows]
    return Table(
        [
            words("method, stage", [f"{method}, {stage}" for method, stage in keys]),
            number("runs", [str(len(row)) for row in rows]),
            number("budget", [", ".join(f"{b:g}" for b in one) or "none" for one in budgets]),
            number("mean deviation", [ratio(sum(d) / len(d) if d else math.nan) for d in means]),
            number("largest deviation",
                   [ratio(max(finite(row, "largest_deviation"), default=math.nan))
                    for row in rows]),
            number("first value", [spread([d.first for d in row]) for row in rows]),
            number("last value", [spread([d.last for d in row]) for row in rows]),
            number("last / first", [spread([d.drift for d in row]) for row in rows]),
            number("last λ", [spread([d.lam for d in row]) for row in rows]),
        ]
    )  # fmt: skip


def overall(c: Comparison) -> Table:
    """Aggregates over all tasks and over those that every method has, and what they rest on."""
    columns = [words("measured here", c.methods)]
    for group in [name for name in (ALL, COMMON) if name in c.groups]:
        rows = [c.summaries[name, group] for name in c.methods]
        where = f", {count_of(len(c.groups[group]), 'common task')}" if group == COMMON else ""
        columns += [
            Column(f"IQM, %{where}", [aggregate(s.iqm, s.iqm_zeroed, s) for s in rows]),
            Column(f"mean, %{where}", [aggregate(s.mean, s.mean_zeroed, s) for s in rows]),
        ]
    rows = [c.summaries[name, ALL] for name in c.methods]
    failed = [bad(str(s.failed)) if s.failed else "0" for s in rows]
    columns += [
        Column("tasks", [cell(short_of(s.tasks, s.tasks_expected)) for s in rows]),
        Column("runs", [cell(short_of(s.runs, s.runs_expected)) for s in rows]),
        Column("failed runs", [cell(one) for one in failed]),
        Column("seeds for each task", [cell(s.seeds) for s in rows]),
        Column("episodes for each run", [cell(s.episodes or DASH) for s in rows]),
        words("updates", [s.updates or DASH for s in rows]),
        words("data", [s.data or DASH for s in rows]),
    ]
    return Table(columns)


def aggregate(found: Estimate, zeroed: Estimate, s: Summary) -> Cell:
    """Return an aggregate, also with failed runs as 0 if there are any."""
    return cell(*zeroed_below(percent(found), percent(zeroed), s.failed > 0))


def domains(c: Comparison) -> Table:
    """Aggregates of each domain."""
    columns = [words("domain", c.domains)]
    for method in c.methods:
        cells = []
        for domain in c.domains:
            s = c.summaries[method, domain]
            runs = short_of(s.runs, s.runs_expected, "run")
            count = [runs._replace(text=f"{runs.text},")]
            count += [short_of(s.tasks, s.tasks_expected, "task")]
            lines: list[list[Part | str]]
            lines = [["IQM", *line] for line in aggregate(s.iqm, s.iqm_zeroed, s).lines]
            lines += [["mean", *line] for line in aggregate(s.mean, s.mean_zeroed, s).lines]
            cells.append(cell(*lines, count))
        columns.append(Column(f"{method}, %", cells))
    return Table(columns)


def tasks(c: Comparison) -> Table:
    """Success on each task, with the number of seeds."""
    columns = [words("success, %", [short_task(task) for task in c.tasks])]
    columns.append(Column("pretrained", [cell(pretrained(c, task)) for task in c.tasks]))
    for method in c.methods:
        means, zeroed = task_means(c.scores[method]), task_means(c.zeroed[method])
        cells = []
        for task, value, other in zip(c.tasks, means, zeroed, strict=True):
            results = c.of(method, task)
            scored = sum(not math.isnan(result.success) for result in results)
            expected = sum(result.seed != "" for result in results)
            line: list[str | Part] = [DASH if math.isnan(value) else f"{100 * value:.1f}"]
            if any(result.status in FAILED for result in results):
                line.append(bad(f"failed as 0: {100 * other:.1f}"))
            seeds = short_of(scored, expected, "seed") if expected else bad("no run")
            cells.append(cell(line, seeds))
        columns.append(Column(method, cells))
    return Table(columns)


def pretrained(c: Comparison, task: str) -> str | Part:
    """The mean success that fine-tuning starts from on a task, if methods agree on it."""
    found = [values for (name, _), values in c.starts.items() if name == task and values]
    if any(len(values) > 1 for values in found):
        return bad("differs")
    return f"{100 * sum(values[0] for values in found) / len(found):.1f}" if found else DASH


def measured_rates(
    c: Comparison, published: Published, zeroed: bool = False
) -> dict[str, dict[str, Estimate]]:
    """Return our means by method, then by domain or `ALL`, as the published table has them.

    `ALL` is there only where every task of every published domain has a score, so that it means
    the same. With `zeroed` failed runs have a score of 0.
    """
    found = {}
    for method in c.methods:
        scored = counts((c.zeroed if zeroed else c.scores)[method]) > 0
        has = dict(zip(c.tasks, scored, strict=True))
        number = {name: sum(has[task] for task in c.groups[name]) for name in c.domains}
        rates = {name: c.summaries[method, name] for name in c.domains if number[name]}
        if all(number.get(name) == TASKS_EACH for name in published.domains):
            tasks = [task for name in published.domains for task in c.groups[name]]
            rates[ALL] = c.summarise(method, ALL, tasks)
        found[method] = {name: s.mean_zeroed if zeroed else s.mean for name, s in rates.items()}
    return found


def beside_published(c: Comparison, published: Published, shared: bool = False) -> Table | None:
    """The published table and below it our means, each marked as what it is.

    Args:
        c: What was measured.
        published: The published table.
        shared: Whether only domains that both have are in it; None if there are none.
    """
    names = [*c.domains, *(name for name in published.domains if name not in c.domains), ALL]
    if shared:
        names = [name for name in c.domains if name in published.domains]
        names += [ALL] if len(names) == len(published.domains) else []
        if not names:
            return None
    rows: list[list[Cell]] = []
    for method, rates in published.rates.items():
        number = TASKS_EACH * len(published.domains)
        kinds = [cell(method), cell(str(number)), cell(str(number * SEEDS_EACH)), cell(UPDATES)]
        rows.append([*kinds, *(published_cell(rates.get(name)) for name in names)])
    ours, zeroed = (measured_rates(c, published, zeroed) for zeroed in (False, True))
    for method in c.methods:
        s = c.summaries[method, ALL]
        kinds = [cell(method), cell(short_of(s.tasks, s.tasks_expected))]
        kinds += [cell(short_of(s.runs, s.runs_expected)), cell(s.updates or DASH)]
        rows.append([*kinds, *(measured_cell(c, method, name, ours) for name in names)])
        if s.failed:
            tasks = int((counts(c.zeroed[method]) > 0).sum())
            kinds = [cell(f"{method}, failed runs as 0"), cell(of(tasks, s.tasks_expected))]
            kinds += [cell(f"{of(s.runs + s.failed, s.runs_expected)} ({s.failed} failed)")]
            cells = [cell(percent(zeroed[method].get(name))) for name in names]
            rows.append([*kinds, cell(""), *cells])
    last = f"mean of {len(published.domains)}"
    headings = ["success, %", "tasks", "runs", "updates"]
    headings += [last if name == ALL else name for name in names]
    columns = zip(headings, zip(*rows, strict=True), strict=True)
    return Table(
        [Column(heading, cells, numeric=heading != headings[0]) for heading, cells in columns],
        {0: "published", len(published.rates): "measured here"},
    )


def published_cell(rate: Rate | None) -> Cell:
    """Return a published rate."""
    if rate is None:
        return cell(DASH)
    spread = [] if rate.deviation is None else [small(f"± {rate.deviation:.0f}")]
    return cell([f"{rate.mean:.0f}", *spread])


def measured_cell(
    c: Comparison, method: str, name: str, rates: dict[str, dict[str, Estimate]]
) -> Cell:
    """Return our mean in a domain, and what it lacks beside the published one."""
    found = rates[method].get(name)
    lines = [percent(found)]
    if found is not None and name != ALL:
        s = c.summaries[method, name]
        if s.tasks < TASKS_EACH or s.runs < s.runs_expected:
            lines.append([bad(f"{of(s.runs, s.runs_expected)} runs, {count_of(s.tasks, 'task')}")])
    return cell(*lines)


def latex_table(c: Comparison, published: Published) -> str:
    """Return methods x domains, published and measured, as a LaTeX table with booktabs."""
    table = beside_published(c, published)
    assert table is not None  # as it is of all domains
    lines = [
        r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
        *(f"% {line}" for line in published.source),
        r"\begin{table*}[t]",
        r"\centering",
        r"\caption{Success in percent. Published: mean and standard deviation over seeds, by the "
        r"methods' authors. Measured here: mean over tasks and seeds with its 95\,\% interval, of "
        r"a stratified bootstrap and at least as wide as Wilson's; runs without a result are "
        r"left out and counted; where runs failed or diverged, the same with a success of 0 for "
        r"them. The last column is "
        rf"the mean over the {len(published.domains)} published domains.}}",
        r"\label{tab:success}",
        r"\resizebox{\textwidth}{!}{%",
        *table.latex(),
    ]
    lines[-1] += "}"
    return "\n".join([*lines, r"\end{table*}", ""])


def headline(c: Comparison) -> str:
    """Return the result in a line: mean success of each method, the best first, and their pair."""
    group = COMMON if COMMON in c.groups else ALL
    found = {name: c.summaries[name, group].mean.value for name in c.methods}
    ranked = [name for name in c.methods if not math.isnan(found[name])]
    ranked.sort(key=found.__getitem__, reverse=True)
    if not ranked:
        return "No run has a score yet"
    text = ", ".join(f"{name} {100 * found[name]:.1f}" for name in ranked)
    kind = "common task" if group == COMMON else "task"
    text += f" % on {count_of(len(c.groups[group]), kind)}"
    for p in c.pairs:
        if {p.first, p.second} == {*ranked[:2]} and not math.isnan(p.probability.value):
            value = p.probability if p.first == ranked[0] else mirrored(p.probability)
            shown_value = " ".join(part.text for part in share(value))
            text += f"; P({ranked[0]} > {ranked[1]}) = {shown_value}"
    return text


def mirrored(found: Estimate) -> Estimate:
    """Return P(Y > X) of P(X > Y)."""
    return Estimate(1 - found.value, 1 - found.high, 1 - found.low)


def settings(c: Comparison, differing: bool) -> Table | None:
    """The settings of each method's runs, of several values all; None if there are none.

    Args:
        c: What was measured.
        differing: Whether only those that are not the same for all methods that use them.
    """
    found: dict[str, dict[str, dict[str, None]]] = {}
    for result in c.results:
        for name, value in settings_of(result).items():
            values = found.setdefault(name, {}).setdefault(str(result.method), {})
            values[printable(value_in_words(value), LONGEST)] = None
    rows = {
        name: [" or ".join(values.get(method, [DASH])) for method in c.methods]
        for name, values in found.items()
    }
    if differing:
        rows = {name: row for name, row in rows.items() if len({*row} - {DASH}) > 1}
    if not rows:
        return None
    columns = [words(method, [row[number] for row in rows.values()])
               for number, method in enumerate(c.methods)]  # fmt: skip
    return Table([words("flag", [flag_of(name) for name in rows]), *columns])


def problems(results: list[Result]) -> Table | None:
    """Every run that is not done, and why, the worst first; None if there is none."""
    groups: dict[tuple[Status, str, str, str], list[str]] = {}
    for result in results:
        if result.status != "done":
            method = result.method or "pretraining"
            key = (result.status, method, result.task, result.reason)
            groups.setdefault(key, []).append(result.seed or "all")
    if not groups:
        return None
    order = list(WORDS)
    keys = sorted(groups, key=lambda key: order.index(key[0]))
    return Table(
        [
            words("state", [WORDS[key[0]] for key in keys]),
            words("seeds", [" ".join(groups[key]) for key in keys]),
            words("reason", [key[3] for key in keys]),
            words("method", [key[1] for key in keys]),
            words("task", [key[2] for key in keys]),
        ]
    )
