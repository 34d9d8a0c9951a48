"""What became of the jobs of a sweep, or of the runs in a folder."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trqam_fast.errors import UsageError
from trqam_fast.runs.folder import MODEL, is_held
from trqam_fast.runs.progress import Progress, read_progress
from trqam_fast.runs.read import fault_of
from trqam_fast.status.outcome import read_outcomes
from trqam_fast.sweep.plan import read_plan
from trqam_fast.text import time_since

ENDED = ("done", "failed", "blocked")
PENDING = ("running", "queued", "waiting", "stopped", "stale")


@dataclass
class Line:
    """A job of a sweep, or a run.

    Attributes:
        name: Of the job, or the run's folder.
        task, method, algo, seeds: What it trains.
        kind: That of an `Outcome`; of a run outside of a sweep done, running (a process holds its
            folder), interrupted or unreadable.
        state: The kind in words, with its reason.
        progress: How far it is.
        after: Name of its pretraining.
        left: Estimated seconds until its end, None if there is no estimate.
    """

    name: str
    task: str
    method: str
    algo: str
    seeds: str
    kind: str
    state: str
    progress: Progress
    after: str | None = None
    left: float | None = None


def with_problems(text: str, progress: Progress) -> str:
    """Return a state with what is damaged or cannot be read of the run's files."""
    return "; ".join([text, *progress.problems])


def done_text(progress: Progress, seeds: int) -> str:
    """Return "done", with the seeds that failed."""
    if not progress.failures:
        return "done"
    reasons = "; ".join(f"seed {seed}: {why}" for seed, why in progress.failures.items())
    return f"done, {len(progress.failures)} of {seeds} seeds failed: {reasons}"


def read_lines(folder: Path) -> tuple[list[Line], bool]:
    """Return a line for each job or run in a folder, and whether they are runs without a sweep.

    Raises:
        UsageError: there are none, or the sweep's plan is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; name that of a sweep or of a run")
    runs = not (folder / "plan.json").exists()
    lines = run_lines(folder) if runs else job_lines(folder)
    estimate(lines)
    return lines, runs


def progress_of(folder: Path, planned: Mapping[str, Any]) -> tuple[Progress, str]:
    """Return how far a run is and, if what its files hold cannot be used, why."""
    try:
        return read_progress(folder, planned), ""
    except Exception as error:
        fault = fault_of(error)
        return read_progress(folder / "none", planned), fault  # as of one that has not begun


def job_lines(out: Path) -> list[Line]:
    """Return a line for each job of a sweep.

    Raises:
        UsageError: its plan is damaged.
    """
    jobs = read_plan(out)
    outcomes = read_outcomes(out, jobs)
    lines = []
    for job in jobs:
        progress, fault = progress_of(job.run_dir(out), job.config)
        kind, text = outcomes[job.name].kind, outcomes[job.name].words
        if fault:
            kind, text = "unreadable", f"unreadable: it {fault}"
        elif kind == "done":
            text = done_text(progress, len(job.seeds))
        method, seeds = job.method or "pretraining", " ".join(map(str, job.seeds))
        lines.append(
            Line(
                job.name, job.env_name, method, job.algo, seeds, kind,
                with_problems(text, progress), progress, job.after,
            )
        )  # fmt: skip
    return lines


def run_lines(folder: Path) -> list[Line]:
    """Return a line for each run in a folder, which may itself be one.

    Raises:
        UsageError: there is none.
    """
    lines = []
    for path, folders, files in os.walk(folder):
        folders.sort()
        if "config.json" not in files or MODEL in files:
            continue
        folders.clear()
        progress, fault = progress_of(Path(path), {})
        config = progress.config
        seeds = config.get("seeds", [])
        algo = str(config.get("algo", ""))
        kind, text = "done", done_text(progress, len(seeds))
        if "summary.json" not in files:
            kind = "running" if is_held(Path(path)) else "interrupted"
            text = f"{kind}, newest row {time_since(progress.newest)} ago"
        if fault or not config:
            kind, text = "unreadable", f"unreadable: {fault or 'without its settings'}"
        lines.append(
            Line(
                os.path.relpath(path, folder), str(config.get("env_name", "")),
                progress.algorithm.label, algo, " ".join(map(str, seeds)), kind,
                with_problems(text, progress), progress,
            )
        )  # fmt: skip
    if not lines:
        raise UsageError(f"{folder} holds neither a sweep nor a run; name the folder of one")
    return lines


def estimate(lines: list[Line]) -> None:
    """Estimate the time left of every line that has not ended, in seconds.

    Steps over speed: a stage's own, else the median of runs of the same algorithm on the same task,
    on any task, or of any algorithm. It is scaled by what evaluations and the rest took in finished
    runs of the algorithm, nothing as long as there are none.
    """
    speeds: dict[tuple[str, ...], list[float]] = {}
    overheads: dict[str, list[float]] = {}
    for line in lines:
        for stage, speed in line.progress.speeds.items():
            for key in ((stage, line.algo, line.task), (stage, line.algo), (stage,)):
                speeds.setdefault(key, []).append(speed)
        if line.progress.overhead is not None:
            overheads.setdefault(line.algo, []).append(line.progress.overhead)
    for line in lines:
        if line.kind not in (*PENDING, "interrupted") or not line.progress.ends:
            continue
        seconds, begin = 0.0, line.progress.step
        for stage, end in line.progress.ends.items():
            if end <= begin:
                continue
            keys = ((stage, line.algo, line.task), (stage, line.algo), (stage,))
            known = next((speeds[key] for key in keys if key in speeds), [math.nan])
            speed = line.progress.speeds.get(stage, statistics.median(known))
            seconds += (end - begin) / speed
            begin = end
        if not math.isnan(seconds):
            line.left = seconds * statistics.median(overheads.get(line.algo, [1.0]))


def sweep_left(lines: Sequence[Line]) -> float | None:
    """Return the estimated seconds until all jobs have ended, None without an estimate.

    What is left of all, shared by as many as run now, and at least that of a job and of its
    pretraining before it.
    """
    pending = {line.name: line for line in lines if line.kind in PENDING}
    running = sum(line.kind == "running" for line in lines)
    left = {name: line.left for name, line in pending.items() if line.left is not None}
    if running == 0 or len(left) < len(pending):
        return None
    chains = [left[name] + left.get(line.after or "", 0.0) for name, line in pending.items()]
    return max(sum(left.values()) / running, *chains)
