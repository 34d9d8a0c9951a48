"""Run many trainings: python -m trqam_fast.sweep SPEC --out DIR (see --help)."""

from __future__ import annotations

import signal
import sys

from trqam_fast.cli import begin, run_command

if __name__ == "__main__":
    begin(signal.SIGTERM, signal.SIGUSR1)

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trqam_fast.data.load import missing_data
from trqam_fast.errors import FAILURE, INTERRUPTED, REQUEUE, Stopped, UsageError
from trqam_fast.files import expanded, write_text, written_whole
from trqam_fast.runs.folder import check_out
from trqam_fast.streams import say
from trqam_fast.sweep import cluster
from trqam_fast.sweep.estimate import job_seconds, machine_bytes, makespan
from trqam_fast.sweep.execute import execute, settle
from trqam_fast.sweep.finished import finished
from trqam_fast.sweep.memory import memory_notes
from trqam_fast.sweep.plan import Job, make_plan, read_plan, write_plan
from trqam_fast.sweep.slurm import slurm_script
from trqam_fast.sweep.spec import Resources, Spec, read_spec
from trqam_fast.text import duration, one_line


@dataclass(frozen=True)
class SweepArgs:
    """Run tasks x algorithms x seeds x settings, each task's pretraining first and shared.

    Runs that are finished are skipped, runs that were begun continue, so the same command goes on
    after an interruption.
    """

    spec: Annotated[Path | None, tyro.conf.Positional] = None
    """File that describes the sweep, e.g. sweeps/smoke.toml."""
    out: Path | None = None
    """Folder of the sweep; machines of a cluster must share it."""
    address: str | None = None
    """Ray cluster to run on, e.g. auto or HOST:6379; without it Ray runs on this machine."""
    num_cpus: int | None = None
    """Cores of this machine to use, without --address; all by default."""
    num_gpus: int | None = None
    """GPUs of this machine to use, without --address; all by default."""
    dry_run: bool = False
    """Print the jobs with an estimate of their time, and run nothing."""
    slurm_script: bool = False
    """Write sweep.slurm to --out instead of running; start it there with bash."""
    job: str | None = None
    """Run this one job of --out in this process and exit with its status; for schedulers."""

    def __post_init__(self) -> None:
        for name in ("spec", "out"):
            path = getattr(self, name)
            object.__setattr__(self, name, None if path is None else expanded(path))
        if self.address is not None and (self.num_cpus, self.num_gpus) != (None, None):
            raise UsageError(
                "--num-cpus and --num-gpus are what this machine gives, and --address names a "
                "cluster; drop them, or --address"
            )
        for name, bound in {"num_cpus": 1, "num_gpus": 0}.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; use {bound} or more")


def main(argv: list[str] | None = None) -> int:
    """Run what the flags ask for; return the exit status, 1 if a job failed."""
    args = tyro.cli(SweepArgs, args=argv, prog="python -m trqam_fast.sweep")
    if args.out is None:
        raise UsageError("--out is missing; name the folder of the sweep")
    if args.job is not None:
        check_alone(args)
        return run_one(args.out, args.job)
    if args.spec is None:
        raise UsageError("no sweep is named; give its file, e.g. sweeps/smoke.toml")
    check_out(args.out)
    spec = read_spec(args.spec)
    jobs = make_plan(spec, args.out)
    if args.dry_run:
        describe(jobs, spec, args.out, args)
        say_notes(jobs, spec)
        return 0
    say_notes(jobs, spec)
    script = slurm_script(jobs, args.out, spec.resources) if args.slurm_script else None
    if script is None:
        cluster.load_ray()
    write_plan(jobs, args.out)
    copy = args.out / "sweep.toml"
    if not (copy.exists() and copy.samefile(args.spec)):
        with written_whole(copy) as file:
            file.write(args.spec.read_bytes())
    if script is None:
        return run_all(jobs, spec, args.out, args)
    path = args.out / "sweep.slurm"
    write_text(path, script)
    print(f"submit with: bash {path}")
    return 0


def say_notes(jobs: list[Job], spec: Spec) -> None:
    """Print where jobs may take more memory than they are given, and which data are not here."""
    notes = memory_notes(jobs, spec.resources)
    for job in jobs:
        config = job.train_config()
        problem = missing_data(
            config.env_name, config.dataset, config.dataset_dir, config.recipe
        )  # fmt: skip
        if problem is not None:
            notes.append(f"on this machine {problem}")
    for note in dict.fromkeys(notes):
        say(f"note: {note}", "stderr")


def check_alone(args: SweepArgs) -> None:
    """Raise `UsageError` if --job, which runs one job of a plan here, comes with other flags."""
    alone = SweepArgs(out=args.out, job=args.job)
    for name, value in vars(args).items():
        if value != getattr(alone, name):
            flag = "a sweep's file" if name == "spec" else f"--{name.replace('_', '-')}"
            raise UsageError(f"--job runs one job of --out, whatever {flag} says; drop {flag}")


def run_one(out: Path, name: str) -> int:
    """Run a job here; return its exit status, as the trainer's."""
    jobs = {job.name: job for job in read_plan(out)}
    if name not in jobs:
        raise UsageError(f"--job {name!r} is none of {out}; its plan.json names them")
    state = execute(out.resolve(), jobs[name])
    say(f"{state.state}  {name}" + (f": {one_line(state.reason)}" if state.reason else ""))
    if state.state == "done":
        return FAILURE if state.reason else 0
    return REQUEUE if state.state == "stopped" else FAILURE


def run_all(jobs: list[Job], spec: Spec, out: Path, args: SweepArgs) -> int:
    """Run a sweep on Ray; return the exit status."""
    resources = spec.resources
    done = sum(finished(out, job) for job in jobs)
    say(f"{len(jobs)} jobs, {done} of them finished; watch them with")
    say(f"    python -m trqam_fast.status {out} --watch")
    if done == len(jobs):
        for job in jobs:
            settle(out, job)
        return 0
    with cluster.connected(args.address, args.num_cpus, args.num_gpus) as ray:
        missing = cluster.missing_resources(ray, resources)
        if missing and args.address is None:
            raise UsageError(f"{missing}; change [resources] or --num-cpus and --num-gpus")
        if missing:
            say(f"warning: {missing}; the jobs wait for such a node")
        try:
            states = cluster.run_jobs(ray, jobs, out, resources, spec.retries, say)
        except KeyboardInterrupt:
            raise Stopped(
                "interrupted; the same command continues every run from its last checkpoint",
                INTERRUPTED,
            ) from None
    if any(state.state == "stopped" for state in states.values()):
        raise Stopped("the sweep was stopped; the same command continues every run")
    failed = [name for name, state in states.items() if state.state != "done"]
    say(f"report: python -m trqam_fast.report {out}")
    if failed:
        say(f"{len(failed)} of {len(jobs)} jobs failed; the same command tries them again")
    return FAILURE if failed else 0


def slots(resources: Resources, args: SweepArgs, jobs: int) -> int:
    """Return how many of the jobs this machine runs at a time, by its cores and its memory."""
    cpus = args.num_cpus or os.cpu_count() or 1
    memory = machine_bytes() / 2**30
    return max(1, int(min(jobs, cpus / resources.cpus, memory / resources.memory_gb)))


def describe(jobs: list[Job], spec: Spec, out: Path, args: SweepArgs) -> None:
    """Print the plan, and what it takes."""
    on_cpu = spec.resources.gpus == 0
    seconds: dict[str, float] = {}
    for job in jobs:
        over = finished(out, job)
        if on_cpu:
            seconds[job.name] = 0.0 if over else job_seconds(job)
        cost = duration(seconds[job.name]) if on_cpu and not over else ""
        note = "finished" if over else "after its pretraining" if job.after else ""
        print(f"{cost:>8}  {job.name}  {note}".rstrip(), flush=True)
    runs = sum(len(job.seeds) for job in jobs if job.method)
    print(f"{len(jobs)} jobs, {runs} runs that are results")
    if not on_cpu:
        print("no estimate of the time: it would have to be measured on the GPUs")
        return
    count = slots(spec.resources, args, len(jobs))
    print(
        f"about {duration(makespan(jobs, seconds, count))} with {count} jobs at a time, "
        f"{duration(sum(seconds.values()))} one after another, if all episodes have full length "
        "and jobs do not slow each other down; measured on this machine, without making data"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
