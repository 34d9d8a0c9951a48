"""Writes a comparison as CSV files and as a LaTeX table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from typing import Any

from trqam_fast.report.aggregate import Estimate, counts, estimates, mean
from trqam_fast.report.comparison import SETTLING, Comparison
from trqam_fast.report.published import ALL, Published

DASH = "—"
TASKS_EACH, SEEDS_EACH, UPDATES = 5, 8, "1M"
"""Of the published numbers."""


def csv_number(value: float | None, digits: int = 6) -> str:
    """Return a number for a CSV file, nothing where there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def csv_text(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def scores_csv(comparison: Comparison) -> str:
    """Return one row for each method, task and seed, whatever became of it."""
    columns = ("method", "algo", "task", "domain", "seed", "status", "success", "start",
               "updates", "data", "reason", "folder")  # fmt: skip
    return csv_text(
        columns,
        (
            (
                r.method, r.algo, r.task, r.domain, r.seed, r.status, csv_number(r.success),
                csv_number(comparison.start_of(r)), r.updates, r.data, r.reason,
                r.folder,
            )
            for r in comparison.results
        ),
    )  # fmt: skip


def summary_csv(comparison: Comparison, published: Published) -> str:
    """Return the aggregates, measured and published, from 0 to 1."""
    names = ("mean", "iqm", "mean_failed_as_0", "iqm_failed_as_0")
    columns = ["kind", "method", "group", "tasks", "tasks_expected", "runs", "runs_expected",
               "failed", "seeds_per_task", "updates", "data"]  # fmt: skip
    columns += [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    columns += ["std_over_seeds"]
    rows: list[list[Any]] = []
    for (method, group), s in comparison.summaries.items():
        row = ["measured here", method, group, s.tasks, s.tasks_expected, s.runs,
               s.runs_expected, s.failed, s.seeds, s.updates, s.data]  # fmt: skip
        for found in (s.mean, s.iqm, s.mean_zeroed, s.iqm_zeroed):
            row += [csv_number(value) for value in found]
        rows.append([*row, ""])
    for method, rates in published.rates.items():
        for group, rate in rates.items():
            tasks = TASKS_EACH * (len(published.domains) if group == ALL else 1)
            runs = tasks * SEEDS_EACH
            row = ["published", method, group, tasks, tasks, runs, runs, "", SEEDS_EACH, UPDATES]
            deviation = None if rate.deviation is None else rate.deviation / 100
            row += [
                "published",
                csv_number(rate.mean / 100),
                *[""] * 11,
                csv_number(deviation),
            ]
            rows.append(row)
    return csv_text(columns, rows)


def improvement_csv(comparison: Comparison) -> str:
    """Return the probability of improvement of every pair, also with failed runs as 0."""
    ends = ("", "_low", "_high")
    columns = ["x", "y", "tasks", "x_runs", "y_runs", "x_failed", "y_failed"]
    columns += [*(f"probability{end}" for end in ends), "tasks_failed_as_0"]
    columns += [f"probability_failed_as_0{end}" for end in ends]
    return csv_text(
        columns,
        (
            (
                pair.first, pair.second, pair.tasks, *pair.runs, *pair.failed,
                *map(csv_number, pair.probability), pair.tasks_zeroed,
                *map(csv_number, pair.zeroed),
            )
            for pair in comparison.pairs
        ),
    )  # fmt: skip


def path_kl_csv(comparison: Comparison) -> str:
    """Return how the path KL of every run went."""
    columns = ("method", "task", "seed", "status", "stage", "budget", "first", "last",
               f"mean_after_{SETTLING}", "mean_relative_deviation", "largest_relative_deviation",
               "last_over_first", "last_lambda")  # fmt: skip
    return csv_text(
        columns,
        (
            (
                d.result.method, d.result.task, d.result.seed, d.result.status, d.stage,
                csv_number(d.budget), csv_number(d.first), csv_number(d.last), csv_number(d.mean),
                csv_number(d.mean_deviation), csv_number(d.largest_deviation), csv_number(d.drift),
                csv_number(d.lam),
            )
            for d in comparison.deviations
        ),
    )  # fmt: skip


def measured_rates(
    comparison: Comparison, published: Published, zeroed: bool = False
) -> dict[str, dict[str, Estimate]]:
    """Return our means by method, then by domain or `ALL`, as the published table has them.

    `ALL` is there only where every task of every published domain has a score, so that it means
    the same. With `zeroed` failed runs have a score of 0.
    """
    found = {}
    for method in comparison.methods:
        scores = (comparison.zeroed if zeroed else comparison.scores)[method]
        tasks = {
            name: int((counts(scores[:, comparison.columns(name)]) > 0).sum())
            for name in comparison.domains
        }
        summaries = {name: comparison.summaries[method, name] for name in comparison.domains}
        found[method] = {
            name: s.mean_zeroed if zeroed else s.mean
            for name, s in summaries.items()
            if tasks[name]
        }
        whole = [name for name in published.domains if tasks.get(name) == TASKS_EACH]
        if whole == published.domains:
            columns = [column for name in whole for column in comparison.columns(name)]
            found[method][ALL] = estimates([mean], scores[:, columns])[0]
    return found


def table_domains(comparison: Comparison, published: Published) -> list[str]:
    """Return the domains of both tables together, those that we measured first."""
    ours = comparison.domains
    return [*ours, *(name for name in published.domains if name not in ours)]


def latex_table(comparison: Comparison, published: Published) -> str:
    """Return methods x domains, published and measured, as a LaTeX table with booktabs."""
    columns = [*table_domains(comparison, published), ALL]
    width = len(columns) + 4
    lines = [
        r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
        *(f"% {line}" for line in published.source),
        r"\begin{table*}[t]",
        r"\centering",
        r"\caption{Success in percent. Published: mean and standard deviation over seeds, by the "
        r"methods' authors. Measured here: mean over tasks and seeds with its 95\,\% stratified "
        r"bootstrap interval; runs without a result are left out and counted; where runs failed or "
        r"diverged, the same with a success of 0 for them. The last column is "
        rf"the mean over the {len(published.domains)} published domains.}}",
        r"\label{tab:success}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule",
        " & ".join(["method", "tasks", "runs", "updates", *map(latex, columns)]) + r" \\",
        r"\midrule",
        rf"\multicolumn{{{width}}}{{l}}{{\emph{{published}}}} \\",
    ]
    for method, rates in published.rates.items():
        tasks = TASKS_EACH * len(published.domains)
        cells = [latex(method), str(tasks), str(tasks * SEEDS_EACH), UPDATES]
        cells += [latex_rate(rates.get(name)) for name in columns]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{measured here}}}} \\"]
    zeroed = measured_rates(comparison, published, zeroed=True)
    for method, found in measured_rates(comparison, published).items():
        s = comparison.summaries[method, ALL]
        cells = [latex(method), of(s.tasks, s.tasks_expected), of(s.runs, s.runs_expected)]
        cells += [latex(s.updates) or "---"]
        cells += [latex_estimate(found.get(name)) for name in columns]
        lines.append(" & ".join(cells) + r" \\")
        if s.failed:
            tasks = int((counts(comparison.zeroed[method]) > 0).sum())
            cells = [r"\quad failed runs as 0", of(tasks, s.tasks_expected)]
            cells += [f"{of(s.runs + s.failed, s.runs_expected)} ({s.failed} failed)", ""]
            cells += [latex_estimate(zeroed[method].get(name)) for name in columns]
            lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table*}", ""]
    return "\n".join(lines)


def of(count: int, expected: int) -> str:
    """Return a count, and out of how many if that is more."""
    return str(count) if count == expected else f"{count} of {expected}"


def latex_rate(rate: Any) -> str:
    """Return a published rate."""
    if rate is None:
        return "---"
    return f"{rate.mean:.0f}" + (
        "" if rate.deviation is None else rf" {{\scriptsize $\pm$ {rate.deviation:.0f}}}"
    )


def latex_estimate(found: Estimate | None) -> str:
    """Return a measured mean in percent with its interval."""
    if found is None:
        return "---"
    value, low, high = (100 * part for part in found)
    if math.isnan(low):
        return f"{value:.0f}"
    return rf"{value:.0f} {{\scriptsize [{low:.0f}, {high:.0f}]}}"


SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&",
    "#": r"\#", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def latex(text: str) -> str:
    """Return a text with LaTeX's own characters escaped."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)
