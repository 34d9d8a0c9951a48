"""How long the rest of an experiment takes on this machine."""

from __future__ import annotations

from pathlib import Path

from trqam_fast.sweep.__main__ import SweepArgs, slots
from trqam_fast.sweep.estimate import job_seconds, makespan
from trqam_fast.sweep.execute import finished
from trqam_fast.sweep.plan import make_plan
from trqam_fast.sweep.spec import Spec
from trqam_fast.text import duration


def sweep_seconds(spec: Spec, out: Path, num_cpus: int | None) -> tuple[float, int, int]:
    """Return the seconds of what is left of a sweep, its jobs, and how many of them are over.

    One job of each algorithm and number of seeds is measured, since a setting costs nothing.
    """
    jobs = make_plan(spec, out)
    measured: dict[tuple[str, int], float] = {}
    seconds = {}
    for job in jobs:
        kind = (job.algo, len(job.seeds))
        if finished(out, job):
            seconds[job.name] = 0.0
            continue
        if kind not in measured:
            measured[kind] = job_seconds(job)
        seconds[job.name] = measured[kind]
    count = slots(spec.resources, SweepArgs(num_cpus=num_cpus), len(jobs))
    done = sum(finished(out, job) for job in jobs)
    return makespan(jobs, seconds, count), len(jobs), done


def estimate_lines(plans: list[tuple[str, Spec, Path, bool]], num_cpus: int | None) -> list[str]:
    """Return a line for each sweep of an experiment, and one for all of them.

    Args:
        plans: Name, file and folder of the sweeps, and whether each is part of the least there is
            to do; where it is not, it takes the place of the one before.
        num_cpus: Cores to use; all by default.
    """
    lines, least, most, before = [], 0.0, 0.0, 0.0
    for name, spec, out, always in plans:
        seconds, jobs, done = sweep_seconds(spec, out, num_cpus)
        lines.append(f"{duration(seconds):>8}  {name}: {jobs} jobs, {done} of them over")
        if always:
            least, most = least + seconds, most + seconds
        else:
            most += seconds - before
        before = seconds
    whole = duration(least) if least == most else f"{duration(least)} to {duration(most)}"
    return [
        *lines,
        f"{whole} in all, if all episodes have full length and jobs do not slow each other down; "
        "measured on this machine, without making data",
    ]
