"""Runs a sweep on Ray: this machine's cores and GPUs, or a cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trqam_fast.errors import UsageError
from trqam_fast.sweep.execute import NO_PRETRAINING, execute, settle
from trqam_fast.sweep.finished import finished
from trqam_fast.sweep.plan import Job
from trqam_fast.sweep.spec import Resources
from trqam_fast.sweep.state import JobState, StateFile, repeating
from trqam_fast.text import one_line

# Ray's least; jobs hand over files, and through Ray only their states.
OBJECT_STORE_BYTES = 80 * 2**20


STOP = "stop"
"""File in a sweep's folder that asks its jobs to write a checkpoint and end."""

STOPPING = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that stop a sweep as an interrupt does, besides Ctrl-C."""


class Interrupted(Exception):
    """A job was stopped by a signal to its process, and wants to be continued elsewhere."""


def load_ray() -> Any:
    """Return Ray.

    Raises:
        UsageError: it is not installed.
    """
    # Ray reports on its use over the network unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError(
            "Ray is not installed, and sweeps run on it; pip install 'trqam_fast[sweep]', or write "
            "--slurm-script"
        ) from None
    return ray


def no_cluster(address: str | None, error: Exception) -> UsageError:
    """Return what to say when no cluster answers."""
    return UsageError(
        f"--address is {address}, where no Ray cluster answers ({error}); start one with "
        "ray start --head"
    )


def check_answers(address: str) -> None:
    """Raise `UsageError` if nothing listens at ``host:port``; Ray itself waits for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise no_cluster(address, error) from None


@contextlib.contextmanager
def connected(address: str | None, cpus: int | None, gpus: int | None) -> Iterator[Any]:
    """Connect to a cluster, or start Ray on this machine, and leave it at the end; main thread.

    Meanwhile a signal of `STOPPING` raises KeyboardInterrupt.

    Args:
        address: Of a running cluster, ``auto`` or ``host:port``; None starts Ray here.
        cpus: Cores that this machine gives; None is all it has.
        gpus: GPUs that it gives; likewise.

    Raises:
        UsageError: no cluster answers there.
    """
    ray = load_ray()
    options: dict[str, Any] = {"address": address}
    if address is not None:
        check_answers(address)
    else:
        options = {
            "address": "local", "num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }  # fmt: skip
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    try:
        ray.init(**options, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise no_cluster(address, error) from None
    try:
        for number in STOPPING:  # Ray's own handler of SIGTERM prints a stack and leaves
            signal.signal(number, signal.default_int_handler)
        yield ray
    finally:
        ray.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def missing_resources(ray: Any, resources: Resources) -> str:
    """Return what no single node has of a job's resources, in words; empty if one has all."""
    wanted = {
        "CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory_gb * 2**30,
    }  # fmt: skip
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0) >= least for name, least in wanted.items()) for node in nodes):
        return ""
    most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in wanted}
    return (
        f"a job takes {resources.cpus:g} cores, {resources.gpus:g} GPUs and "
        f"{resources.memory_gb:g} GiB, but no node has them all (at most {most['CPU']:g}, "
        f"{most['GPU']:g} and {most['memory'] / 2**30:.1f} GiB)"
    )


@contextlib.contextmanager
def watching(out: Path) -> Iterator[None]:
    """Send this process SIGUSR1 when the file `STOP` appears, which every node sees."""

    def watch() -> bool:
        if not (out / STOP).exists():
            return True
        os.kill(os.getpid(), signal.SIGUSR1)
        return False

    with repeating(1.0, watch):
        yield


def run_jobs(
    ray: Any,
    jobs: list[Job],
    out: Path,
    resources: Resources,
    retries: int,
    say: Callable[[str], object] = print,
) -> dict[str, JobState]:
    """Run the jobs that are not finished, each after the one it starts from.

    A job whose process or node dies is started again, on any node, and continues from its newest
    checkpoint. An interrupt (Ctrl-C or a signal of `STOPPING`), or the file `STOP`, lets the
    running jobs write a checkpoint and end, and starts no others; a second interrupt leaves at
    once.

    Args:
        ray: Ray, connected.
        jobs: Of the sweep, each after the one it needs.
        out: Folder of the sweep, on a file system that all nodes share.
        resources: What each job gets.
        retries: How often a job that died is started again.
        say: Takes a line for each job that ends.

    Returns:
        The state of every job that was not finished before, by name.
    """
    out = out.resolve()
    (out / STOP).unlink(missing_ok=True)

    # max_calls=1: threads, kept memory and CUDA contexts end with their job.
    @ray.remote(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        memory=int(resources.memory_gb * 2**30),
        max_calls=1,
        max_retries=retries,
        retry_exceptions=[Interrupted],
    )
    def run_job(job: Job, before: JobState | None) -> JobState:
        if (out / STOP).exists() and not finished(out, job):
            return StateFile(out, job, attempt=False).not_begun("the sweep was stopped")
        if before is not None and before.state != "done":
            return StateFile(out, job, attempt=False).end("failed", NO_PRETRAINING)
        with watching(out):
            state = execute(out, job)
        if state.state == "stopped" and not (out / STOP).exists():
            raise Interrupted(state.reason)
        return state

    references: dict[str, Any] = {}
    for job in jobs:
        if finished(out, job):
            settle(out, job)
        else:
            references[job.name] = run_job.options(name=job.name).remote(
                job, references.get(job.after or "")
            )
    named = {references[job.name]: job for job in jobs if job.name in references}
    waiting, states = list(named), {}
    while waiting:
        try:
            ready, waiting = ray.wait(waiting)
        except KeyboardInterrupt:
            if (out / STOP).exists():
                raise
            (out / STOP).touch()
            say("stopping: running jobs write a checkpoint; interrupt again to leave at once")
            continue
        for reference in ready:
            job = named[reference]
            states[job.name] = state = outcome(ray, reference, out, job)
            seconds = (state.ended or state.started) - state.started
            say(
                f"{state.state:>7}  {job.name}  {seconds:.0f} s on {state.host}, "
                f"{len(waiting)} left" + (f": {one_line(state.reason)}" if state.reason else "")
            )
    return states


def outcome(ray: Any, reference: Any, out: Path, job: Job) -> JobState:
    """Return a job's state, also of one whose processes died too often."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        file = StateFile(out, job, attempt=False)
        state, reason = file.values | {"state": "failed"}, reason_of(error)
        try:
            return file.end("failed", reason)
        except OSError:  # the others go on though the disk is full
            return JobState(**state | {"reason": reason, "ended": state["started"]})


def reason_of(error: Exception) -> str:
    """Return why Ray gave a job up, in a sentence: the error in the job, else Ray's own words."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no reason given'}"
