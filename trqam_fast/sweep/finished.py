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
    return not any(
        steps_of(job.config.get(name), 0) > steps_of(ran.get(name), math.inf)
        for name in FINE_TUNING_ALONE
    )


def steps_of(value: object, otherwise: float) -> float:
    """Return a number of steps, or something else where a file holds no sound one."""
    return value if isinstance(value, int) else otherwise


def over(run_dir: Path) -> bool:
    """Whether a run has come to its end."""
    return (run_dir / "summary.json").exists()
