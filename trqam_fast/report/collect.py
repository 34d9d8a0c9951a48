"""Finds runs under folders and says of every seed what became of it."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trqam_fast.data.names import parse_task
from trqam_fast.errors import UsageError
from trqam_fast.report.runs import Run, printable, read_run
from trqam_fast.sweep.plan import NAMES, Job, read_plan
from trqam_fast.sweep.state import JobState, read_state
from trqam_fast.training.config import STAGES
from trqam_fast.training.domains import domain_of

Status = Literal[
    "done", "diverged", "failed", "stopped", "running", "stale", "queued", "unfinished", "missing"
]
FAILED: tuple[Status, ...] = ("diverged", "failed")
GOING_ON: tuple[Status, ...] = ("queued", "running", "stale", "stopped")
TRACKED = frozenset({"path_kl", "lam"})

# Settings that two runs of one method may differ in.
FREE = {
    "env_name", "algo", "seeds", "run_dir", "preset", "pretrained", "device", "backend", "graph",
    "threads", "dataset_dir", "generated_dir", "log_interval", "eval_interval", "eval_episodes",
    "eval_envs", "eval_workers", "save_interval", "keep", "tensorboard", "wandb", "bc_steps",
}  # fmt: skip


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
        start: Success of the policy that it fine-tunes, None if that was not evaluated.
        curve: Success by step since fine-tuning began; of bc since training began.
        updates: What it was trained with, in words.
        data: The data that it was trained on, in words.
        tracking: Path KL of each stage.
    """

    method: str | None
    algo: str
    task: str
    seed: str
    status: Status
    reason: str = ""
    folder: str = ""
    success: float = math.nan
    start: float | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    updates: str = ""
    data: str = ""
    tracking: list[Tracking] = field(default_factory=list)

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
    states: dict[str, JobState | None] = {}
    damaged: dict[str, str] = {}
    for job in jobs:
        try:
            states[job.name] = read_state(out, job)
        except UsageError as error:
            states[job.name], damaged[job.name] = None, str(error)
    results = []
    for job in jobs:
        status, reason = status_of(job, states)
        if job.name in damaged:
            status, reason = "unfinished", damaged[job.name]
        folder = job.run_dir(out)
        run = Run(folder, job.name)
        if folder.is_dir() and any(folder.iterdir()):
            run = read_noting(folder, job.name, status, notes)
        elif status == "done":
            status, reason = "unfinished", f"its run folder {folder} is gone"
        seeds = [str(seed) for seed in job.seeds]
        results += results_of(run, job.method, job.algo, job.env_name, seeds, status, reason)
    return results


def status_of(job: Job, states: dict[str, JobState | None]) -> tuple[Status, str]:
    """Return what became of a job, and why."""
    state = states[job.name]
    if state is None:
        before = None if job.after is None else states.get(job.after)
        if before is not None and before.state == "failed":
            return "queued", "its pretraining failed"
        waits = job.after is not None and (before is None or before.state != "done")
        return "queued", "waits for its pretraining" if waits else "has not begun"
    if state.stale:
        return "stale", f"no sign of life from {state.host}: the process or the machine is gone"
    if state.state == "running":
        return "running", f"on {state.host}"
    return state.state, state.reason


def read_noting(folder: Path, name: str, status: Status, notes: list[str]) -> Run:
    """Read a run; what its files lack is noted, unless it is not over."""
    try:
        run = read_run(folder, name, TRACKED)
    except UsageError:
        return Run(folder, name)
    if status not in GOING_ON:
        for problem in run.problems:
            if not problem.startswith(("seed ", "summary.json is missing")):
                notes.append(f"{run.name}: {problem}")
    return run


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
    failures = run.summary.get("failures")
    failures = failures if isinstance(failures, dict) else {}
    cloned = [row.step for row in (*run.metrics, *run.evaluations) if row.stage == "pretrain"]
    begin = 0 if algo == "bc" else max(cloned, default=0)
    last, end = last_stage(run.config)
    results = []
    for seed in seeds:
        rows = [row for row in run.evaluations if row.seed == seed]
        rows = [row for row in rows if math.isfinite(row.values.get("success", math.nan))]
        starts = [row.values["success"] for row in rows if row.stage == "pretrain"]
        result = Result(
            method, algo, task, seed, status, reason, printable(str(run.path)),
            start=starts[-1] if starts else None,
            curve=[
                (row.step - begin, row.values["success"]) for row in rows if row.step >= begin
            ],
            updates=updates_in_words(run.config),
            data=data_in_words(run.config),
            tracking=[] if algo == "bc" else tracking_of(run, seed, begin),
        )  # fmt: skip
        final = [row for row in rows if row.stage == last] if last else rows
        if seed in failures:
            result.status, result.reason = "diverged", str(failures[seed])
        elif status == "done" and not final:
            result.status, result.reason = "unfinished", "it has no evaluation of its last stage"
        elif status == "done" and end is not None and final[-1].step < end:
            result.status = "unfinished"
            result.reason = f"its last evaluation is at step {final[-1].step} of {end}"
        elif status == "done":
            result.success = final[-1].values["success"]
        results.append(result)
    return results


def last_stage(config: dict[str, Any]) -> tuple[str | None, int | None]:
    """Return a run's last stage and the step at which it ends, None where nothing says so."""
    steps = [config.get(name) for name in ("bc_steps", "offline_steps", "online_steps")]
    if not all(isinstance(number, int) for number in steps):
        return None, None
    if config.get("algo") == "bc":
        return "pretrain", steps[0]
    stage = max((number for number in range(3) if steps[number] > 0), default=0)
    return STAGES[stage], sum(steps)


def updates_in_words(config: dict[str, Any]) -> str:
    """Return how long a run fine-tunes; of bc how long it clones."""
    if config.get("algo") == "bc":
        return short(config.get("bc_steps"))
    offline, online = config.get("offline_steps"), config.get("online_steps")
    parts = [short(offline)] if offline else []
    parts += [f"{short(online)} online"] if online else []
    return " + ".join(parts)


def short(number: Any) -> str:
    """Return a count as 1M, 12.5k or 700."""
    if not isinstance(number, int):
        return ""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return str(number)


def data_in_words(config: dict[str, Any]) -> str:
    """Return what a run was trained on."""
    if not config:
        return ""
    if not config.get("generated"):
        return "published data"
    return f"generated data, {short(config.get('generated_transitions'))} transitions"


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
        if run.config.get("algo") == "trqam" and "lam" in row.values:
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
    names = method_names(runs)
    results = []
    for run, method in zip(runs, names, strict=True):
        status, reason = ("done", "") if run.summary else (
            "unfinished", "summary.json is missing: it was stopped, or is still running",
        )  # fmt: skip
        config = run.config
        results += results_of(
            run, method, str(config["algo"]), str(config["env_name"]), run.seeds, status, reason
        )
    return results


def method_names(runs: list[Run]) -> list[str]:
    """Name the method of every run: its algorithm, and the settings that tell it from others.

    Those are the settings that runs of one algorithm on one task differ in.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run.config["algo"], run.config["env_name"]), []).append(run.config)
    differ: dict[str, dict[str, None]] = {}
    for (algo, _), configs in groups.items():
        for name in dict.fromkeys(name for config in configs for name in config):
            values = {str(config.get(name)) for config in configs}
            if name not in FREE and len(values) > 1:
                differ.setdefault(algo, {})[name] = None
    return [
        " ".join(
            [NAMES.get(run.config["algo"], str(run.config["algo"]))]
            + [
                f"{name.replace('_', '-')} {run.config.get(name)}"
                for name in differ.get(run.config["algo"], {})
            ]
        )
        for run in runs
    ]
