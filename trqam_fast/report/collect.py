"""Finds runs under folders and says of every seed what became of it."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trqam_fast.agents import Declaration, declaration
from trqam_fast.data.names import parse_task
from trqam_fast.errors import UsageError
from trqam_fast.runs.folder import is_held
from trqam_fast.runs.progress import stage_ends
from trqam_fast.runs.read import Run, encodable, fault_of, read_run
from trqam_fast.status.outcome import Kind, read_outcomes
from trqam_fast.sweep.plan import read_plan
from trqam_fast.text import printable, short_count
from trqam_fast.training.domains import domain_of

Status = Literal[
    "done", "diverged", "failed", "stopped", "running", "stale", "queued", "unfinished", "missing"
]
FAILED: tuple[Status, ...] = ("diverged", "failed")
GOING_ON: tuple[Status, ...] = ("queued", "running", "stale", "stopped")
STATUSES: dict[Kind, Status] = {
    "queued": "queued", "waiting": "queued", "blocked": "queued", "running": "running",
    "stale": "stale", "stopped": "stopped", "failed": "failed", "done": "done",
    "unreadable": "unfinished",
}  # fmt: skip
"""Of the seeds of a job, by what became of it."""
TRACKED = frozenset({"path_kl", "lam"})


@dataclass
class Tracking:
    """Path KL of one seed in one fine-tuning stage.

    Attributes:
        stage: offline or online.
        budget: None where the algorithm has none.
        steps: Since the stage began.
        path_kl, lam: At these steps; `lam` is empty without a dual variable.
        start: Step since fine-tuning began at which the stage begins.
    """

    stage: str
    budget: float | None
    steps: list[int] = field(default_factory=list)
    path_kl: list[float] = field(default_factory=list)
    lam: list[float] = field(default_factory=list)
    start: int = 0


@dataclass
class Result:
    """One seed of one method on one task.

    Attributes:
        method: None of a pretraining that is no method of its own.
        algo, task, seed: What ran.
        status, reason: What became of it.
        folder: Its run folder.
        success: At the last evaluation of its last stage, from 0 to 1; NaN unless it is done.
        episodes: Of that evaluation, 0 if it does not say.
        start: Success of the policy that it fine-tunes, None if that was not evaluated.
        curve: Success by step since fine-tuning began; of bc since training began.
        updates: What it was trained with, in words.
        data: The data that it was trained on, in words.
        tracking: Path KL of each stage.
        config: Its settings, of a run that has not begun those planned; empty if unknown. In a
            sweep `bc_steps` is that of its pretraining.
        sweep: Folder of its sweep, empty without one.
        declared: What its run folder holds of its algorithm.
    """

    method: str | None
    algo: str
    task: str
    seed: str
    status: Status
    reason: str = ""
    folder: str = ""
    success: float = math.nan
    episodes: int = 0
    start: float | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    updates: str = ""
    data: str = ""
    tracking: list[Tracking] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    sweep: str = ""
    declared: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def algorithm(self) -> Declaration:
        """What its algorithm declares."""
        return declaration(self.algo, self.declared)

    @property
    def domain(self) -> str:
        """The domain of its task."""
        return domain_name(self.task)


@functools.cache
def domain_name(task: str) -> str:
    """Return the domain of a task; of data other than navigate or play with their kind.

    Those two are what the published table has. A task that OGBench does not have is a domain of
    its own.
    """
    try:
        domain, dataset = domain_of(task), parse_task(task).dataset_name
    except UsageError:
        return task
    kind = dataset.removeprefix(f"{domain}-").rpartition("-")[0]
    return domain if kind in ("navigate", "play") else f"{domain}-{kind}"


def collect_sweep(out: Path, notes: list[str]) -> list[Result]:
    """Return the results of a sweep's folder.

    Raises:
        UsageError: its plan is damaged.
    """
    jobs = read_plan(out)
    outcomes = read_outcomes(out, jobs)
    configs: dict[str, dict[str, Any]] = {}
    results = []
    for job in jobs:
        outcome = outcomes[job.name]
        status, reason = STATUSES[outcome.kind], outcome.reason
        folder = job.run_dir(out)
        run = read_noting(folder, job.name, status, notes)
        if status == "done" and not run.summary:
            status, reason = "unfinished", "its summary.json is damaged"
        config = configs[job.name] = run.config or dict(job.config)
        if "bc_steps" in configs.get(job.after or "", {}):
            config = config | {"bc_steps": configs[str(job.after)]["bc_steps"]}
        seeds = [str(seed) for seed in job.seeds]
        for result in results_so_far(
            run, job.method, job.algo, job.env_name, seeds, status, reason
        ):
            result.config, result.sweep = config, str(out)
            results.append(result)
    return results


def read_noting(folder: Path, name: str, status: Status, notes: list[str]) -> Run:
    """Read a run; what its files lack is noted, unless it is not over."""
    try:
        run = read_run(folder, name, TRACKED)
    except UsageError:  # it has not begun
        return Run(folder, name)
    except OSError as error:
        notes.append(f"{name}: cannot be read ({error})")
        return Run(folder, name)
    if status not in GOING_ON:
        for problem in run.problems:
            if not problem.startswith(("seed ", "summary.json is missing")):
                notes.append(f"{run.name}: {problem}")
    return run


def results_so_far(
    run: Run, method: str | None, algo: str, task: str, seeds: list[str], status: Status,
    reason: str,
) -> list[Result]:  # fmt: skip
    """Return the result of each seed of a run; without values if what its files hold is odd."""
    try:
        return results_of(run, method, algo, task, seeds, status, reason)
    except Exception as error:
        reason = f"its folder {fault_of(error)}"
        return results_of(Run(run.path, run.name), method, algo, task, seeds, "unfinished", reason)


def results_of(
    run: Run,
    method: str | None,
    algo: str,
    task: str,
    seeds: list[str],
    status: Status,
    reason: str,
) -> list[Result]:
    """Return the result of each seed of a run."""
    failures = run.failures
    cloned = [row.step for row in (*run.metrics, *run.evaluations) if row.stage == "pretrain"]
    algorithm = declaration(algo, run.declared)
    begin = max(cloned, default=0) if algorithm.fine_tunes else 0
    last, end = next(reversed(stage_ends(run.config, run.declared).items()), (None, None))
    results = []
    for seed in seeds:
        rows = [row for row in run.evaluations if row.seed == seed and math.isfinite(row.success)]
        starts = [row.success for row in rows if row.stage == "pretrain"]
        result = Result(
            method, algo, task, seed, status, reason, encodable(str(run.path)),
            start=starts[-1] if starts else None,
            curve=[(row.step - begin, row.success) for row in rows if row.step >= begin],
            updates=updates_in_words(run.config, algorithm.fine_tunes),
            data=data_in_words(run.config),
            tracking=tracking_of(run, seed, begin) if algorithm.fine_tunes else [],
            declared=run.declared,
        )  # fmt: skip
        final = [row for row in rows if row.stage == last] if last else rows
        if seed in failures:
            result.status, result.reason = "diverged", printable(failures[seed], 400)
        elif status == "done" and not final:
            result.status, result.reason = "unfinished", "it has no evaluation of its last stage"
        elif status == "done" and end is not None and final[-1].step < end:
            result.status = "unfinished"
            result.reason = f"its last evaluation is at step {final[-1].step} of {end}"
        elif status == "done":
            result.success, result.episodes = final[-1].success, final[-1].episodes or 0
        results.append(result)
    return results


def updates_in_words(config: dict[str, Any], fine_tunes: bool = True) -> str:
    """Return how long a run fine-tunes; of pretraining alone how long it clones."""
    if not fine_tunes:
        return short_count(config.get("bc_steps"))
    offline, online = config.get("offline_steps"), config.get("online_steps")
    parts = [short_count(offline)] if offline else []
    parts += [f"{short_count(online)} online"] if online else []
    return " + ".join(parts)


def data_in_words(config: dict[str, Any]) -> str:
    """Return what a run was trained on."""
    if not config:
        return ""
    if config.get("dataset"):
        return printable(Path(str(config["dataset"])).name)
    if not config.get("generated"):
        return "published"
    return f"{short_count(config.get('generated_transitions'))} generated"


def tracking_of(run: Run, seed: str, begin: int) -> list[Tracking]:
    """Return the path KL of one seed in every fine-tuning stage."""
    stages: dict[str, Tracking] = {}
    ends = run.boundaries
    for row in run.metrics:
        value = row.values.get("path_kl", math.nan)
        if row.seed != seed or row.stage == "pretrain" or not math.isfinite(value):
            continue
        if row.stage not in stages:
            first = ends.get("offline", begin) if row.stage == "online" else begin
            stages[row.stage] = Tracking(row.stage, run.budget(row.stage), start=first - begin)
        track = stages[row.stage]
        track.steps.append(row.step - begin - track.start)
        track.path_kl.append(value)
        if run.algorithm.budget and "lam" in row.values:
            track.lam.append(row.values["lam"])
    return list(stages.values())


def collect_loose(folders: list[Path], root: Path, notes: list[str]) -> list[Result]:
    """Return the results of run folders that no plan describes."""
    runs = []
    for folder in folders:
        run = read_noting(folder, os.path.relpath(folder, root), "done", notes)
        if run.config.get("env_name") and run.config.get("algo"):
            runs.append(run)
        else:
            notes.append(f"{run.name}: config.json does not say what ran, so it is left out")
    results = []
    for run in runs:
        status: Status = "done"
        reason = ""
        if not run.summary:
            status, reason = "unfinished", "it was interrupted: it has no summary.json"
            if is_held(run.path):
                reason = "it is still running"
        algo, task = printable(run.config["algo"]), printable(run.config["env_name"])
        for result in results_so_far(
            run, run.algorithm.label, algo, task, run.seeds, status, reason
        ):
            result.config = run.config
            results.append(result)
    return results
