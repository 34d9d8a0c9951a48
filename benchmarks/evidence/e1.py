"""E1: does one setting serve unequal problems? Selection, confirmation, comparison."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import statistics
from benchmarks.evidence.scores import Score, read_scores
from trqam_fast.agents import ALGORITHMS
from trqam_fast.sweep.__main__ import main as sweep

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[2] / "sweeps" / "e1"
CELLS = ("a", "b", "c", "d")
SETTINGS = {"qam": "inv_temp", "trqam": "kl_budget", "sqam": "kl_budget"}
"""The setting that is selected, by algorithm."""
SEEDS = list(range(12))
READINGS = ("tuned per cell", "leave one cell out", "one for all")

Table = dict[str, dict[str, dict[float, float]]]
"""Mean score by cell, algorithm and setting."""


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
    path.write_text(to_toml(values))
    sweep([str(path), "--out", str(out), *flags])


def select(out: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return the setting that each reading selects, by reading, algorithm and cell."""
    table: Table = {}
    for cell in CELLS:
        scores = read_scores(out / "select" / cell)
        table[cell] = {
            algo: {
                value: float(np.mean([s.score for s in scores[method(algo, value)].values()]))
                for value in values_of(cell, algo)
            }
            for algo in SETTINGS
        }
    chosen: dict[str, dict[str, dict[str, float]]] = {reading: {} for reading in READINGS}
    for algo in SETTINGS:
        for reading, others in (
            ("tuned per cell", lambda cell: [cell]),
            ("leave one cell out", lambda cell: [c for c in CELLS if c != cell]),
            ("one for all", lambda cell: list(CELLS)),
        ):
            chosen[reading][algo] = {
                cell: best_setting([table[other][algo] for other in others(cell)]) for cell in CELLS
            }
    (out / "selection.json").write_text(json.dumps({"scores": table, "chosen": chosen}, indent=1))
    return chosen


def best_setting(scores: list[dict[float, float]]) -> float:
    """Return the setting with the best mean; of equals the one nearer to the list's middle."""
    values = list(scores[0])
    means = [float(np.mean([cell[value] for cell in scores])) for value in values]
    middle = (len(values) - 1) / 2
    order = sorted(range(len(values)), key=lambda i: (-round(means[i], 9), abs(i - middle)))
    return values[order[0]]


def confirm_file(cell: str, chosen: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return the sweep that confirms a cell: fresh seeds, the selected settings alone."""
    values = read_cell(cell)
    flags = values["flags"]
    flags["eval_interval"] = flags["offline_steps"] // 6
    flags["save_interval"] = flags["offline_steps"] // 6
    values |= {"seeds": SEEDS, "seeds_per_job": 6}
    values["grid"] = {
        algo: {name: sorted({chosen[reading][algo][cell] for reading in READINGS})}
        for algo, name in SETTINGS.items()
    }
    return values


def run(out: Path, flags: list[str]) -> None:
    """Run selection and confirmation, or what is left of them."""
    for cell in CELLS:
        run_sweep(read_cell(cell), out / "select" / cell, flags)
    chosen = select(out)
    for cell in CELLS:
        run_sweep(confirm_file(cell, chosen), out / "confirm" / cell, flags)


def analyse(out: Path) -> dict[str, Any]:
    """Return scores by reading, algorithm and cell, and paired differences between algorithms."""
    selection = json.loads((out / "selection.json").read_text())
    chosen = selection["chosen"]
    confirmed: dict[str, dict[str, dict[str, Score]]] = {
        cell: read_scores(out / "confirm" / cell) for cell in CELLS
    }
    readings: dict[str, Any] = {}
    for reading in READINGS:
        runs = {
            algo: {
                cell: confirmed[cell][method(algo, chosen[reading][algo][cell])] for cell in CELLS
            }
            for algo in SETTINGS
        }
        readings[reading] = {
            "settings": chosen[reading],
            "scores": {
                algo: {cell: summary(list(cells[cell].values())) for cell in CELLS}
                for algo, cells in runs.items()
            },
            "differences": {
                f"{ALGORITHMS[first].label} - {ALGORITHMS[second].label}": statistics.compare(
                    [differences(runs[first][cell], runs[second][cell]) for cell in CELLS]
                )._asdict()
                for first, second in (("trqam", "qam"), ("sqam", "qam"), ("sqam", "trqam"))
            },
        }
    return {"selection": selection["scores"], "readings": readings}


def differences(first: dict[str, Score], second: dict[str, Score]) -> np.ndarray:
    """Return the differences of scores over the seeds that both have."""
    seeds = [seed for seed in first if seed in second]
    return np.array([first[seed].score - second[seed].score for seed in seeds])


def summary(scores: list[Score]) -> dict[str, Any]:
    """Return means over the seeds, and each seed's score."""
    return {
        name: float(np.nanmean([getattr(score, name) for score in scores]))
        for name in ("score", "final", "dip", "area", "path_kl")
    } | {"by_seed": [score.score for score in scores]}
