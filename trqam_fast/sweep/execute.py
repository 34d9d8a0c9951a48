"""Runs one job in this process, from wherever it was left."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import traceback
from pathlib import Path

from trqam_fast.errors import RunError, Stopped, UsageError
from trqam_fast.files import locked
from trqam_fast.kernels import BackendError
from trqam_fast.runs.read import read_sound
from trqam_fast.streams import say
from trqam_fast.sweep.finished import finished, over
from trqam_fast.sweep.plan import Job
from trqam_fast.sweep.state import JobState, State, StateFile, read_state, state_path
from trqam_fast.train import run
from trqam_fast.training.config import TrainConfig

NO_PRETRAINING = "its pretraining has not ended"


def execute(out: Path, job: Job) -> JobState:
    """Run a job to its end, a signal or a failure, and return its state.

    A job that was begun continues from its newest checkpoint; a finished one is left alone. Two
    processes never run the same one: the second waits for the first. What the trainer prints goes
    to the job's log. Nothing starts from pretraining that has not ended.

    Args:
        out: Folder of the sweep, on a file system that all machines share.
        job: The job.

    Returns:
        Its state: done, failed or stopped.
    """
    path = state_path(out, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock"), lambda: note(out, job, "waiting for another process")):
        if finished(out, job):
            return settle(out, job)
        if job.after is not None and not over(out / "runs" / job.after):
            return StateFile(out, job, attempt=False).end("failed", NO_PRETRAINING)
        file = StateFile(out, job)
        file.write()
        with file.beating():
            state, reason = train_to_log(out, job)
        return file.end(state, reason)


def settle(out: Path, job: Job) -> JobState:
    """Return the state of a finished job, written anew if its process did not come to that."""
    try:
        state = read_state(out, job)
    except UsageError:
        state = None
    if state is not None and state.state == "done":
        return state
    return StateFile(out, job, attempt=False).end("done", failed_seeds(out, job))


def note(out: Path, job: Job, line: str) -> None:
    """Add a line to a job's log."""
    log = job.log(out)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        print(line, file=file)


def train_to_log(out: Path, job: Job) -> tuple[State, str]:
    """Run the trainer; return the state that the job is in then, and why."""
    log = job.log(out)
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(log, "a", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        say(f"python -m trqam_fast.sweep --out {shlex.quote(str(out))} --job {job.name}")
        try:
            run(dataclasses.replace(config_of(out, job), resume="auto"))
        except Stopped as stop:
            say(str(stop))
            return "stopped", str(stop)
        except (UsageError, RunError, BackendError) as error:
            say(f"error: {error}")
            return "failed", str(error)
        except Exception as error:
            # A job's failure is its result: the sweep goes on with the others.
            traceback.print_exc(file=sys.stderr)
            return "failed", f"{type(error).__name__}: {error}; see {log}"
    return "done", failed_seeds(out, job)


def config_of(out: Path, job: Job) -> TrainConfig:
    """Return the configuration of a job on this machine, with its run folder.

    Raises:
        UsageError: it cannot run here.
    """
    return job.train_config(run_dir=str(job.run_dir(out)), device=job.config["device"])


def failed_seeds(out: Path, job: Job) -> str:
    """Return which seeds of a finished job diverged, or why nobody knows; empty if none did."""
    problems: list[str] = []
    summary = read_sound(job.run_dir(out) / "summary.json", problems) or {}
    failures = summary.get("failures", {}).items()
    return "; ".join([*problems, *(f"seed {seed}: {why}" for seed, why in failures)])
