"""E1: does one setting serve unequal problems? Selection, confirmation, comparison."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import statistics
from benchmarks.evidence.scores import Scores, differences, read_scores, summary
from trqam_fast.agents import ALGORITHMS
from trqam_fast.errors import RunError
from trqam_fast.files import read_text, write_json, write_text
from trqam_fast.sweep.__main__ import main as sweep
from trqam_fast.sweep.spec import Spec, parse_spec
from trqam_fast.text import count_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[2] / "sweeps" / "e1"
CELLS = ("a", "b", "c")
SETTINGS = {"qam": "inv_temp", "trqam": "kl_budget"}
"""The setting that is selected, by algorithm."""
PAIRS = (("trqam", "qam"),)
"""What is compared: first less second."""
SEEDS = list(range(8))
READINGS = ("tuned per cell", "leave one cell out", "one for all")

Table = dict[str, dict[str, dict[float, float]]]
"""Mean score by cell, algorithm and setting."""
Chosen = dict[str, dict[str, dict[str, float]]]
"""Setting by reading, algorithm and cell."""


def read_cell(cell: str) -> dict[str, Any]:
    """Return the sweep file of a cell."""
    return tomllib.loads((FOLDER / f"{cell}.toml").read_text())


def to_toml(values: dict[str, Any]) -> str:
    """Return a sweep file: names with plain values, then tables of them."""
    plain = [f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict)]
    tables = {k: v for k, v in values.items() if isinstance(v, dict)}
    lines = plain
    for name, table in tables.items():
        parts = {f"{name}.{k}": v for k, v in table.items() if isinstance(v, dict)}
        for title, part in (parts or {name: table}).items():
            lines += ["", f"[{title}]", *(f"{k} = {json.dumps(v)}" for k, v in part.items())]
    return "\n".join(lines) + "\n"


def method(algo: str, value: float) -> str:
    """Return the name that a sweep gives to an algorithm with a setting."""
    return f"{ALGORITHMS[algo].label} {SETTINGS[algo].replace('_', '-')} {value}"


def values_of(cell: str, algo: str) -> list[float]:
    """Return the settings of an algorithm that a cell's sweep tries."""
    return read_cell(cell)["grid"][algo][SETTINGS[algo]]


def run_sweep(values: dict[str, Any], out: Path, flags: list[str]) -> None:
    """Run a sweep, or go on with it.

    Raises:
        RunError, UsageError: the sweep cannot run.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "spec.toml"
    write_text(path, to_toml(values))
    sweep([str(path), "--out", str(out), *flags])


def table_of(selected: dict[str, Scores]) -> Table:
    """Return the mean scores of the settings of each cell that some seed has tried."""
    return {
        cell: {
            algo: {
                value: float(np.mean([score.score for score in runs.values()]))
                for value in values_of(cell, algo)
                if (runs := scores.runs.get(method(algo, value)))
            }
            for algo in SETTINGS
        }
        for cell, scores in selected.items()
    }


def select(out: Path) -> Chosen:
    """Return the setting that each reading selects.

    Raises:
        RunError: some run of the selection is not over.
    """
    selected = {cell: read_scores(out / "select" / cell) for cell in CELLS}
    left = [cell for cell in CELLS if selected[cell].over < len(selection_runs(cell))]
    if left:
        raise RunError(
            f"the selection is not over in cell {', '.join(left)}; the same command goes on"
        )
    table = table_of(selected)
    chosen: Chosen = {reading: {} for reading in READINGS}
    for algo in SETTINGS:
        for reading, others in (
            ("tuned per cell", lambda cell: [cell]),
            ("leave one cell out", lambda cell: [c for c in CELLS if c != cell]),
            ("one for all", lambda cell: list(CELLS)),
        ):
            chosen[reading][algo] = {
                cell: best_setting([table[other][algo] for other in others(cell)]) for cell in CELLS
            }
    write_json(out / "selection.json", {"scores": table, "chosen": chosen})
    return chosen


def selection_runs(cell: str) -> list[tuple[str, int]]:
    """Return the runs of a cell's selection: method and seed."""
    seeds = read_cell(cell)["seeds"]
    return [
        (method(algo, value), seed)
        for algo in SETTINGS for value in values_of(cell, algo) for seed in seeds
    ]  # fmt: skip


def best_setting(scores: list[dict[float, float]]) -> float:
    """Return the setting with the best mean; of equals the one nearer to the list's middle."""
    values = list(scores[0])
    means = [float(np.mean([cell[value] for cell in scores])) for value in values]
    middle = (len(values) - 1) / 2
    order = sorted(range(len(values)), key=lambda i: (-round(means[i], 9), abs(i - middle)))
    return values[order[0]]


def confirm_file(cell: str, settings: dict[str, list[float]]) -> dict[str, Any]:
    """Return the sweep that confirms a cell: fresh seeds, and some settings by algorithm alone."""
    values = read_cell(cell)
    flags = values["flags"]
    flags["eval_interval"] = flags["offline_steps"] // 6
    flags["save_interval"] = flags["offline_steps"] // 6
    values |= {"seeds": SEEDS, "seeds_per_job": 4}
    values["grid"] = {algo: {SETTINGS[algo]: settings[algo]} for algo in SETTINGS}
    return values


def chosen_in(cell: str, chosen: Chosen) -> dict[str, list[float]]:
    """Return the settings of a cell that some reading selects, by algorithm."""
    return {
        algo: sorted({chosen[reading][algo][cell] for reading in READINGS}) for algo in SETTINGS
    }


def read_chosen(out: Path) -> Chosen | None:
    """Return what was selected, None before."""
    path = out / "selection.json"
    return json.loads(read_text(path))["chosen"] if path.exists() else None


def run(out: Path, flags: list[str]) -> None:
    """Run selection and confirmation, or what is left of them."""
    for cell in CELLS:
        run_sweep(read_cell(cell), out / "select" / cell, flags)
    chosen = select(out)
    for cell in CELLS:
        run_sweep(confirm_file(cell, chosen_in(cell, chosen)), out / "confirm" / cell, flags)


def plans(out: Path) -> list[tuple[str, Spec, Path, bool]]:
    """Return the sweeps of the experiment: name, file, folder, and whether it is the least or most.

    Before the selection is over, a cell's confirmation has between one and three settings of each
    algorithm; both ends are returned, and only there the last value differs.
    """
    found = []
    chosen = read_chosen(out)
    for cell in CELLS:
        spec = parse_spec(read_cell(cell))
        found.append((f"cell {cell}, selection", spec, out / "select" / cell, True))
    for cell in CELLS:
        folder, name = out / "confirm" / cell, f"cell {cell}, confirmation"
        if chosen is not None:
            spec = parse_spec(confirm_file(cell, chosen_in(cell, chosen)))
            found.append((name, spec, folder, True))
            continue
        for count in (1, 3):
            some = {algo: values_of(cell, algo)[:count] for algo in SETTINGS}
            spec = parse_spec(confirm_file(cell, some))
            title = f"{name} of {count_of(count, 'setting')} an algorithm"
            found.append((title, spec, folder, count == 1))
    return found


def analyse(out: Path) -> dict[str, Any]:
    """Return what is there: scores of the selection, and of every reading differences."""
    selected = {cell: read_scores(out / "select" / cell) for cell in CELLS}
    chosen = read_chosen(out)
    progress = {
        f"cell {cell}, selection": (selected[cell], len(selection_runs(cell))) for cell in CELLS
    }
    found: dict[str, Any] = {
        "selection": table_of(selected),
        "selection_seeds": {
            cell: {name: len(runs) for name, runs in scores.runs.items()}
            for cell, scores in selected.items()
        },
        "readings": {},
    }
    if chosen is not None:
        confirmed = {cell: read_scores(out / "confirm" / cell) for cell in CELLS}
        for cell in CELLS:
            settings = sum(map(len, chosen_in(cell, chosen).values()))
            progress[f"cell {cell}, confirmation"] = (confirmed[cell], settings * len(SEEDS))
        found["readings"] = {reading: read_as(chosen[reading], confirmed) for reading in READINGS}
    found["complete"] = chosen is not None and all(s.over == n for s, n in progress.values())
    found["progress"] = {name: s.progress(n) for name, (s, n) in progress.items()}
    return found


def read_as(settings: dict[str, dict[str, float]], confirmed: dict[str, Scores]) -> dict[str, Any]:
    """Return the scores of one reading's settings and the differences between algorithms.

    Args:
        settings: By algorithm and cell.
        confirmed: Scores by cell.
    """
    runs = {
        algo: {
            cell: confirmed[cell].runs.get(method(algo, settings[algo][cell]), {}) for cell in CELLS
        }
        for algo in SETTINGS
    }
    compared = {}
    for first, second in PAIRS:
        pairs = {cell: differences(runs[first][cell], runs[second][cell]) for cell in CELLS}
        pairs = {cell: values for cell, values in pairs.items() if len(values)}
        if pairs:
            name = f"{ALGORITHMS[first].label} - {ALGORITHMS[second].label}"
            compared[name] = statistics.compare(list(pairs.values()))._asdict()
            compared[name]["cells"] = {cell: len(values) for cell, values in pairs.items()}
    return {
        "settings": settings,
        "scores": {
            algo: {cell: summary(list(of.values())) for cell, of in cells.items() if of}
            for algo, cells in runs.items()
        },
        "differences": compared,
    }
