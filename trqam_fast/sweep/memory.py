"""How much memory a sweep's job takes, and so how many seeds it packs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trqam_fast.agents import algorithm
from trqam_fast.data.tasks import find_task
from trqam_fast.memory import update_bytes
from trqam_fast.sweep.spec import Resources, Spec
from trqam_fast.text import count_of
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.interface import own_interface

if TYPE_CHECKING:
    from trqam_fast.sweep.plan import Job

# The widest observation and action of OGBench's tasks with states, rounded up.
WIDEST_OBSERVATION, WIDEST_ACTION = 128, 21

# What a job needs beside its updates and environments: torch, a first environment, the data.
OTHER_BYTES = 2**30

ARM_TASKS = ("cube-", "scene-", "puzzle-")
"""OGBench's tasks with a robot's arm. Their environments hold meshes; the others' 1 to 3 MiB."""
ARM_BYTES, ARM_OTHER_BYTES = 150 * 2**20, 2**30
"""Of each such environment, and of a job that has some (measured, docs/sweeps.md)."""

GPU_TIMES = 1.3
"""What an H100 needed for updates, over `update_bytes`, which bounds the CPU's (docs/gpu.md)."""


def environments(config: TrainConfig) -> int:
    """Return how many environments a job's evaluations make."""
    return min(config.eval_envs, config.eval_episodes)


def environment_bytes(config: TrainConfig) -> int:
    """Return what those hold; nothing is known of one's own."""
    if not find_task(config.env_name).env_id.startswith(ARM_TASKS):
        return 0
    return ARM_OTHER_BYTES + environments(config) * ARM_BYTES


def memory_notes(jobs: Sequence[Job], resources: Resources) -> list[str]:
    """Return a sentence for each task of which a job may take more of the host than it is given."""
    needs: dict[str, tuple[float, int]] = {}
    for job in jobs:
        config = job.train_config()
        threads = max(1, config.threads)
        updates = 0 if resources.gpus > 0 else run_bytes(config, len(job.seeds), threads)
        needed = (OTHER_BYTES + environment_bytes(config) + updates) / 2**30
        need = (needed, environments(config))
        needs[job.env_name] = max(needs.get(job.env_name, (0.0, 0)), need)
    return [
        f"a job of {name} may take {needed:.1f} GiB with the {count_of(count, 'environment')} of "
        f"its evaluations, and memory_gb of [resources] is {resources.memory_gb:g}; give it more, "
        "or fewer eval_envs"
        for name, (needed, count) in needs.items()
        if needed > resources.memory_gb
    ]


def seeds_that_fit(spec: Spec, config: TrainConfig) -> int:
    """Return how many seeds of a run fit into a job's memory, at least one."""
    resources = spec.resources
    room = resources.memory_gb * 2**30 - OTHER_BYTES - environment_bytes(config)
    if resources.gpus > 0:
        room = resources.gpu_memory_gb * resources.gpus * 2**30 - OTHER_BYTES
    threads = max(1, int(resources.cpus))
    one, two = (
        run_bytes(config, runs, threads, gpu=resources.gpus > 0) for runs in (1, 2)
    )  # fmt: skip
    return max(1, 1 + int((room - one) // (two - one)))


def widths_of(config: TrainConfig) -> tuple[int, int]:
    """Return the widths of a task's observation and action; a bound of all for OGBench's."""
    interface = own_interface(config)
    if interface is None:
        return WIDEST_OBSERVATION, WIDEST_ACTION
    return interface.obs_dim, interface.act_dim


def run_bytes(config: TrainConfig, runs: int, threads: int, *, gpu: bool = False) -> int:
    """Bound the memory of a process's updates, on a CPU with the state that it keeps beside them.

    A GPU keeps the state of the last checkpoint on the host; what its updates take is an estimate.
    """
    sizes = update_bytes(
        algorithm(config.algo), config.agent, *widths_of(config), runs=runs,
        threads=threads,
    )  # fmt: skip
    needed = sum(sizes.values())
    return int(GPU_TIMES * needed) if gpu else needed + sizes["held"]
