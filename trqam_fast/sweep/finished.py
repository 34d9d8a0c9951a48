"""Whether a sweep's jobs have come to their ends."""

from __future__ import annotations

import math
from pathlib import Path

from trqam_fast.runs.read import read_sound
from trqam_fast.sweep.plan import FINE_TUNING_ALONE, Job


def finished(out: Path, job: Job) -> bool:
    """Whether a job has come to its end, with or without seeds that diverged.

    A run that ended before the job is made longer has not.
    """
    folder = job.run_dir(out)
    if not over(folder):
        return False
    ran = read_sound(folder / "config.json", []) or {}
    return not any(job.config[name] > steps_of(ran.get(name)) for name in FINE_TUNING_ALONE)


def steps_of(value: object) -> float:
    """Return a run's number of steps; infinity where nothing sound is known of it."""
    return value if isinstance(value, int) else math.inf


def over(run_dir: Path) -> bool:
    """Whether a run has come to its end."""
    return (run_dir / "summary.json").exists()
