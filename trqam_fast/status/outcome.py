"""What became of a sweep's jobs, by their state files and their run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from trqam_fast.errors import RunError, UsageError
from trqam_fast.sweep.finished import finished
from trqam_fast.sweep.finished import over as ended
from trqam_fast.sweep.plan import Job
from trqam_fast.sweep.state import read_state
from trqam_fast.text import time_since

Kind = Literal[
    "queued", "waiting", "blocked", "running", "stale", "stopped", "failed", "done", "unreadable"
]


class Outcome(NamedTuple):
    """What became of a job.

    Attributes:
        kind: queued, waiting (for its pretraining), blocked (which failed), running, stale (no
            heartbeat), stopped, failed, done (also with seeds that diverged), unreadable.
        reason: Why, or where it runs; empty where there is nothing to say.
        attempt: How often it was started.
    """

    kind: Kind
    reason: str = ""
    attempt: int = 1

    @property
    def words(self) -> str:
        """The kind and what there is to say about it."""
        match self.kind:
            case "queued" | "done":
                return self.kind
            case "running":
                return "running" if self.attempt == 1 else f"running, attempt {self.attempt}"
            case "waiting":
                return "waiting for its pretraining"
            case "stopped":
                return self.reason or "stopped"
        return f"{self.kind}: {self.reason}" if self.reason else self.kind


def read_outcomes(out: Path, jobs: Sequence[Job]) -> dict[str, Outcome]:
    """Return what became of each job of a sweep, by name.

    A run with a summary is over, whatever its state file says: the process may have died between
    the two, and the sweep writes the state anew when it is started again. One that was over before
    its job was made longer is queued until it goes on.
    """
    over = {job.name for job in jobs if finished(out, job)}
    found: dict[str, Outcome] = {}
    for job in jobs:
        found[job.name] = Outcome("done") if job.name in over else begun(out, job)
    for job in jobs:
        if found[job.name].kind == "queued" and job.after is not None:
            found[job.name] = after(found.get(job.after))
    return found


def begun(out: Path, job: Job) -> Outcome:
    """Return what became of a job that is not over, by its state file; queued without one."""
    try:
        state = read_state(out, job)
    except (UsageError, RunError, OSError) as error:
        return Outcome("unreadable", str(error))
    if state is None:
        return Outcome("queued", "has not begun")
    if state.stale:
        return Outcome("stale", f"no heartbeat for {time_since(state.beat)}, host {state.host}")
    if state.state == "running":
        return Outcome("running", f"on {state.host}", state.attempt)
    if state.state == "done":
        if ended(job.run_dir(out)):
            return Outcome("queued", "was made longer")
        return Outcome("unreadable", "it was done, but its summary.json is gone")
    return Outcome(state.state, state.reason)


def after(before: Outcome | None) -> Outcome:
    """Return what a job that has not begun waits for, by its pretraining's outcome."""
    if before is None or before.kind not in ("done", "failed"):
        return Outcome("waiting", "waits for its pretraining")
    if before.kind == "failed":
        return Outcome("blocked", "its pretraining failed")
    return Outcome("queued", "has not begun")
