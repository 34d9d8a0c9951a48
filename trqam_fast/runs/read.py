"""Reads run folders, whatever state they are in, and keeps account of what is missing."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trqam_fast.agents import Declaration, declaration
from trqam_fast.damage import is_damage, reason_of
from trqam_fast.errors import UsageError
from trqam_fast.evaluation.statistics import success_interval, wilson_interval
from trqam_fast.files import open_log
from trqam_fast.runs.folder import KEYS, STAGES, is_export
from trqam_fast.runs.values import LARGEST_COUNT, count, load_json, sound
from trqam_fast.runs.versions import as_table
from trqam_fast.text import printable

EPISODES_TOGETHER = 20
"""Online episodes whose success makes one point."""

EVALUATED = ("success", "return")
"""Columns of eval.csv that are drawn; all others are those of metrics.csv and timing.csv."""


class Interval(NamedTuple):
    """A value between its limits."""

    value: float
    low: float
    high: float


class Row(NamedTuple):
    """One row of a CSV log, "" where it has no stage or seed; `values` are its other cells."""

    stage: str
    step: int
    seed: str
    values: dict[str, float]

    @property
    def success(self) -> float:
        """Share of episodes solved, from 0 to 1; NaN if it does not say."""
        found = self.values.get("success", math.nan)
        return min(1.0, max(0.0, found)) if math.isfinite(found) else math.nan

    @property
    def episodes(self) -> int | None:
        """Episodes of an evaluation, None if it does not say."""
        found = self.values.get("episodes", math.nan)
        return int(found) if 1 <= found < LARGEST_COUNT else None


class Point(NamedTuple):
    """A value over the seeds at one step."""

    stage: str
    step: int
    value: float
    low: float
    high: float


@dataclass
class Run:
    """What a run folder holds.

    Attributes:
        path: The folder.
        name: A short name, unique among the runs of a report.
        config, declared, versions, summary: The JSON files; empty where they are missing.
        metrics, timing, evaluations, episodes: Rows of the CSV files.
        tested: What ``python -m trqam_fast.evaluate`` found, by folder below ``evaluation``.
        problems: One sentence for everything missing, damaged or failed.
    """

    path: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    declared: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    timing: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    episodes: list[Row] = field(default_factory=list)
    tested: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def stages(self) -> list[str]:
        """Stages in the order in which they ran."""
        return list(dict.fromkeys(row.stage for row in (*self.metrics, *self.evaluations)))

    @property
    def boundaries(self) -> dict[str, int]:
        """Last step of every stage but the last."""
        ends: dict[str, int] = {}
        for row in (*self.metrics, *self.evaluations):
            ends[row.stage] = max(row.step, ends.get(row.stage, 0))
        return dict(list(ends.items())[:-1])

    @property
    def columns(self) -> list[str]:
        """Columns of metrics.csv and timing.csv that hold a number somewhere."""
        rows = (*self.metrics, *self.timing)
        return list(dict.fromkeys(name for row in rows for name in row.values))

    @property
    def seeds(self) -> list[str]:
        """Seeds by the configuration, else by the logs."""
        if self.config.get("seeds"):
            return [str(seed) for seed in self.config["seeds"]]
        return list(dict.fromkeys(row.seed for row in (*self.metrics, *self.evaluations)))

    @property
    def failures(self) -> dict[str, str]:
        """Reason by seed that diverged, once the run has ended."""
        return self.summary.get("failures", {})

    @property
    def last_step(self) -> int:
        """Step of the last row or evaluation, 0 without any."""
        return max((row.step for row in (*self.metrics, *self.evaluations)), default=0)

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        """Stage, first and last step of every stage."""
        begin, found = 0, []
        for stage, end in (
            self.boundaries | dict.fromkeys(self.stages[-1:], self.last_step)
        ).items():
            found.append((stage, begin, end))
            begin = end
        return found

    def seed_curves(self, column: str) -> dict[str, list[tuple[int, float]]]:
        """Steps and values of a column by seed."""
        found: dict[str, list[tuple[int, float]]] = {}
        for row in self.evaluations if column in EVALUATED else self.metrics:
            value = row.success if column == "success" else row.values.get(column, math.nan)
            if math.isfinite(value):
                found.setdefault(row.seed, []).append((row.step, value))
        return found

    def curve(self, column: str) -> list[Point]:
        """Mean of a column over the seeds at every step, with their smallest and largest."""
        groups: dict[tuple[str, int], list[float]] = {}
        for row in self.evaluations if column in EVALUATED else (*self.metrics, *self.timing):
            if math.isfinite(row.values.get(column, math.nan)):
                groups.setdefault((row.stage, row.step), []).append(row.values[column])
        return [
            Point(stage, step, float(np.mean(values)), min(values), max(values))
            for (stage, step), values in groups.items()
        ]

    def success(self) -> list[Point]:
        """Success with its 95 % interval at every evaluation, from 0 to 1."""
        groups: dict[tuple[str, int], list[Row]] = {}
        for row in self.evaluations:
            if math.isfinite(row.success):
                groups.setdefault((row.stage, row.step), []).append(row)
        return [Point(*key, *success_of(rows)) for key, rows in groups.items()]

    def episode_success(self) -> list[Point]:
        """Success of online episodes of all seeds, some together, with Wilson's interval."""
        rows = sorted(self.episodes, key=lambda row: row.step)
        solved = [(row.step, row.success) for row in rows if math.isfinite(row.success)]
        points = []
        for end in range(EPISODES_TOGETHER, len(solved) + 1, EPISODES_TOGETHER):
            part = solved[end - EPISODES_TOGETHER : end]
            count = sum(success > 0 for _, success in part)
            interval = Interval(count / len(part), *wilson_interval(count, len(part)))
            points.append(Point("online", part[-1][0], *interval))
        return points

    def success_after(self, stage: str) -> tuple[Interval, list[float]] | None:
        """Success at the last evaluation of a stage, and that of each seed, or None."""
        points = [point for point in self.success() if point.stage == stage]
        if not points:
            return None
        last = points[-1]
        rates = [
            row.success
            for row in self.evaluations
            if (row.stage, row.step) == (stage, last.step) and math.isfinite(row.success)
        ]
        return Interval(last.value, last.low, last.high), rates

    def episodes_after(self, stage: str) -> int:
        """Episodes of a seed at the last evaluation of a stage, 0 if it does not say."""
        rows = [row for row in self.evaluations if row.stage == stage]
        return (rows[-1].episodes or 0) if rows else 0

    @property
    def own_data(self) -> bool:
        """Whether its data are not OGBench's, as those of an environment of one's own."""
        return self.config.get("dataset") is not None

    @property
    def algorithm(self) -> Declaration:
        """What its algorithm declares."""
        return declaration(str(self.config.get("algo", "")), self.declared)

    def budget(self, stage: str) -> float | None:
        """Path-KL budget of a stage, None where the algorithm has none."""
        if not self.algorithm.budget:
            return None
        online = self.config.get("kl_budget_online") if stage == "online" else None
        value = self.config.get("kl_budget") if online is None else online
        return None if value is None else float(value)


def success_of(rows: list[Row]) -> Interval:
    """Success over seeds, with `success_interval`."""
    rates = [row.success for row in rows]
    episodes = sum(row.episodes or 1 for row in rows)
    return Interval(float(np.mean(rates)), *success_interval(rates, episodes))


FILES = ("config.json", "versions.json", "metrics.csv", "eval.csv", "summary.json")
"""Any of them makes a folder a run's."""


def read_run(path: Path, name: str | None = None, only: frozenset[str] | None = None) -> Run:
    """Read a run folder; what is missing or damaged is listed in `problems`.

    Args:
        path: The folder.
        name: Its name in the report.
        only: Columns of metrics.csv; with them versions, speeds, online episodes and later
            evaluations are left out.

    Raises:
        UsageError: there is no such folder, or nothing of a run in it, or it is an export.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is no folder; name the folder of a run, e.g. runs/<env>/<algo>/*")
    if is_export(path):
        raise UsageError(f"{path} is an export, which has no logs; name its run")
    if not any((path / file).exists() for file in FILES):
        raise UsageError(f"{path} holds no run (none of {', '.join(FILES)}); name a run folder")
    run = Run(path, encodable(name or path.resolve().name))
    run.config = read_noted(run, "config.json", "its settings are unknown")
    if (path / "algorithm.json").exists():  # runs of earlier versions have none
        run.declared = read_noted(run, "algorithm.json", "its algorithm is known by name alone")
    run.metrics = read_csv(run, "metrics.csv", only=only)
    run.evaluations = read_csv(run, "eval.csv")
    if only is None:
        run.versions = as_table(read_noted(run, "versions.json", "its versions are unknown"))
        if "updates_per_second" not in run.columns:
            run.timing = read_csv(run, "timing.csv", ("stage", "step"))
        if (path / "episodes.csv").exists():  # there is none before the first episode ends
            run.episodes = read_csv(run, "episodes.csv", ("step", "seed"))
        for file in sorted(path.glob("evaluation/*/summary.json")):
            try:
                run.tested[file.parent.name] = load_json(file)
            except Exception as error:
                name = printable(file.relative_to(path), 400)
                run.problems.append(f"{name} {fault_of(error)}; it is left out")
    run.summary = read_noted(run, "summary.json", "the run was stopped, or is still running")
    for seed, reason in run.failures.items():
        run.problems.append(f"seed {printable(seed)} failed: {printable(reason, 400)}")
    return run


def encodable(text: str) -> str:
    """A text with escapes for bytes of file names that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_noted(run: Run, file: str, consequence: str) -> dict[str, Any]:
    """Return what is sound in a JSON file of the folder; note what is not."""
    noted: list[str] = []
    values = read_sound(run.path / file, noted)
    if values is None:
        noted = [f"{file} is missing"]
    run.problems += noted if values else [f"{problem}; {consequence}" for problem in noted]
    return values or {}


def read_sound(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """Return what is sound in a JSON file, nothing if it cannot be read, None if there is none.

    Args:
        path: The file.
        problems: Takes a sentence about what is not sound.
    """
    try:
        values, odd = sound(load_json(path))
    except FileNotFoundError:
        return None
    except Exception as error:
        problems.append(f"{path.name} {fault_of(error)}")
        return {}
    if odd:
        names = printable(", ".join(odd), 400)
        problems.append(f"{path.name} has odd values, left out: {names}")
    return values


def fault_of(error: Exception) -> str:
    """Return what an error of a reader says of the file; errors of other kinds are raised on."""
    if is_damage(error):
        return f"is damaged ({reason_of(error)})"
    if isinstance(error, OSError | MemoryError):
        return f"cannot be read ({reason_of(error)})"
    raise error


def read_csv(
    run: Run, file: str, keys: tuple[str, ...] = KEYS, only: frozenset[str] | None = None
) -> list[Row]:
    """Return the rows of a CSV file that has the columns `keys`; note rows that are damaged."""
    rows, damaged = [], 0
    try:
        with open_log(run.path / file) as text:
            for cells in csv.DictReader(text):
                row = parse_row(cells, keys, only)
                if row is None:
                    damaged += 1
                else:
                    rows.append(row)
    except FileNotFoundError:
        run.problems.append(f"{file} is missing; nothing of it is shown")
        return []
    except Exception as error:
        run.problems.append(f"{file} {fault_of(error)}; it is shown up to there")
    if damaged:
        run.problems.append(f"{file} has damaged rows, left out: {damaged}")
    if not rows:
        run.problems.append(f"{file} has no rows yet")
    lost = sorted(
        {
            printable(f"{name} of seed {row.seed}" if row.seed else name)
            for row in rows
            for name, value in row.values.items()
            if not math.isfinite(value)
        }
    )
    if lost:
        run.problems.append(f"{file} has values that are not finite: {', '.join(lost)}")
    return rows


def parse_row(
    cells: dict[str | None, Any],
    keys: tuple[str, ...] = KEYS,
    only: frozenset[str] | None = None,
) -> Row | None:
    """Return a row, or None if it is damaged; of its values `only` those columns, if given."""
    if None in cells.values() or not all(cells.get(key) for key in keys):
        return None
    values: dict[str, float] = {}
    for name, cell in cells.items():
        if name is None:  # of the cells that are more than the columns
            return None
        if name in KEYS or cell == "" or (only is not None and name not in only):
            continue
        try:
            values[name] = float(cell)
        except ValueError:
            return None
    stage, step = cells.get("stage", ""), count(cells["step"])
    if step is None or stage not in ("", *STAGES):
        return None
    return Row(stage, step, cells.get("seed", ""), values)


def read_runs(paths: list[Path]) -> list[Run]:
    """Read runs and give each a short name of its own.

    Raises:
        UsageError: one is no run, or is named twice.
    """
    resolved = [path.resolve() for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise UsageError(f"{path} is named twice; name every run once")
    depth, deepest = 1, max(len(path.parts) for path in resolved)
    while depth < deepest and len({path.parts[-depth:] for path in resolved}) < len(resolved):
        depth += 1
    return [
        read_run(path, "/".join(full.parts[-depth:]))
        for path, full in zip(paths, resolved, strict=True)
    ]
