"""What an experiment says, in words and tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.evidence.e1 import CELLS, PAIRS, SETTINGS, method, values_of
from trqam_fast.agents import ALGORITHMS
from trqam_fast.text import count_of

PARTIAL = "PARTIAL: not all planned runs are over, so nothing below is a result yet."
MEASURES = {
    "score": "score", "final": "at the end", "dip": "deepest dip", "area": "all evaluations",
    "path_kl": "path KL", "adjoint_gain": "adjoint gain", "value_gap": "value gap",
}  # fmt: skip
"""What the tables call the parts of a score; the first four are percentages."""


def percent(value: float | None) -> str:
    """Return a share in per cent, or a dash."""
    return "-" if value is None else f"{100 * value:.0f}"


def aligned(rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a table: the first column to the left, the others to the right."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def heading(found: dict[str, Any]) -> list[str]:
    """Return how far an experiment is."""
    lines = [] if found["complete"] else [PARTIAL]
    return lines + aligned((f"  {name}:", words) for name, words in found["progress"].items())


def difference_rows(compared: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return a table of paired differences in points, with what they could have shown."""
    rows = [["", "difference", "95 % interval", "p", "pairs", "could have shown"]]
    for name, values in compared.items():
        could = values["detectable"]
        interval = f"[{100 * values['low']:+.1f}, {100 * values['high']:+.1f}]"
        rows.append(
            [
                f"  {name}", f"{100 * values['mean']:+.1f}",
                interval if values["pairs"] > 1 else "-", f"{values['p']:.4f}",
                str(values["pairs"]), "-" if could is None else f"{100 * could:.1f}",
            ]
        )  # fmt: skip
    return rows


def tests_in_words(count: int) -> str:
    """Return what the intervals and p values are."""
    return (
        f"Points of success; paired by cell and seed; interval: hierarchical bootstrap; p: "
        f"sign flips, uncorrected, {count_of(count, 'test')}; could have shown: in four of five "
        "cases. Runs that failed count as 0."
    )


def e1_lines(found: dict[str, Any]) -> list[str]:
    """Return the tables of E1."""
    lines = ["E1: does one setting serve unequal problems?", *heading(found)]
    if not found["readings"]:
        lines.append("  confirmation: its settings are selected once the selection is over")
    lines += ["", "Selection: mean score in % of each setting (*: of one seed)"]
    for algo, name in SETTINGS.items():
        rows = [[f"{ALGORITHMS[algo].label}, {name}", *(f"{v:g}" for v in values_of("a", algo))]]
        for cell in CELLS:
            means = found["selection"][cell][algo]
            seeds = found["selection_seeds"][cell]
            cells = [
                percent(means.get(value)) + "*" * (seeds.get(method(algo, value)) == 1)
                for value in values_of(cell, algo)
            ]
            rows.append([f"  cell {cell}", *cells])
        lines += aligned(rows)
    for reading, values in found["readings"].items():
        primary = ", primary" if reading == "leave one cell out" else ""
        lines += ["", f"Confirmation, {reading}{primary}: score in % [95 %] (setting; seeds)"]
        rows = [["", *(f"cell {cell}" for cell in CELLS), "mean"]]
        for algo in SETTINGS:
            by_cell = values["scores"].get(algo, {})
            cells = [score_in_words(by_cell.get(c), values["settings"][algo][c]) for c in CELLS]
            means = [one["score"] for one in by_cell.values()]
            whole = percent(sum(means) / len(means)) if len(means) == len(CELLS) else "-"
            rows.append([f"  {ALGORITHMS[algo].label}", *cells, whole])
        lines += aligned(rows)
        if values["differences"]:
            lines += aligned(difference_rows(values["differences"]))
            cells = {
                name: sorted(set(CELLS) - set(one["cells"]))
                for name, one in values["differences"].items()
            }
            lines += [f"  {n}: without cell {', '.join(c)}" for n, c in cells.items() if c]
    if found["readings"]:
        lines += ["", tests_in_words(len(PAIRS) * len(found["readings"]))]
    return lines


def score_in_words(values: dict[str, Any] | None, setting: float) -> str:
    """Return a score with its interval, its setting and the number of its seeds."""
    if values is None:
        return f"- ({setting:g}; 0)"
    low, high = map(percent, values["interval"])
    return f"{percent(values['score'])} [{low}, {high}] ({setting:g}; {len(values['by_seed'])})"


def method_rows(methods: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return a table of means over seeds by method."""
    rows = [["", "seeds", *MEASURES.values()]]
    for name_of_method, values in methods.items():
        cells = []
        for index, name in enumerate(MEASURES):
            value = values.get(name)
            shown = percent(value) if index < 4 else "-" if value is None else f"{value:.3g}"
            cells.append(shown)
        rows.append([name_of_method, str(len(values["by_seed"])), *cells])
    return rows


def e2_lines(found: dict[str, Any]) -> list[str]:
    """Return the table of E2."""
    lines = ["E2: long training", *heading(found), ""]
    lines += aligned(method_rows(found["methods"]))
    return [*lines, "", "Per cent of success, then means over the last tenth of the log."]


def e4_lines(found: dict[str, Any]) -> list[str]:
    """Return the curves of E4, with what others published at the same updates."""
    curves = {name: dict(columns["success"]) for name, columns in found["curves"].items()}
    for name, curve in found["published"].items():
        curves[name] = dict(zip(curve["step"], curve["success"], strict=True))
    steps = sorted(set().union(*curves.values()))
    rows = [["success in %", *(f"{step:,}" for step in steps)]]
    rows += [[f"  {n}", *(percent(c.get(step)) for step in steps)] for n, c in curves.items()]
    lines = ["E4: one larger run", *heading(found), "", *aligned(rows), ""]
    return lines + aligned(method_rows(found["methods"]))


def e3_lines(found: dict[str, Any]) -> list[str]:
    """Return the tables of E3."""
    lines = ["E3: the start", *heading(found), "", *aligned(method_rows(found["methods"]))]
    if found["differences"]:
        lines += ["", "Differences to the paper's start at the same budget"]
        lines += aligned(difference_rows(found["differences"]))
        lines += ["", tests_in_words(len(found["differences"]))]
    return lines


LINES = {"e1": e1_lines, "e2": e2_lines, "e3": e3_lines, "e4": e4_lines}
