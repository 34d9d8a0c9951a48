"""How much memory a sweep's job takes, and so how many seeds it packs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from trqam_fast.agents import algorithm
from trqam_fast.data.names import PUBLISHED
from trqam_fast.data.tasks import find_task
from trqam_fast.files import expanded
from trqam_fast.memory import update_bytes
from trqam_fast.simulator.environment import interface_of
from trqam_fast.sweep.spec import Resources, Spec
from trqam_fast.training.config import TrainConfig

if TYPE_CHECKING:
    from trqam_fast.sweep.plan import Job

# The widest observation and action of OGBench's tasks with states, rounded up.
WIDEST_OBSERVATION, WIDEST_ACTION = 128, 21

OTHER_BYTES = 2**30
"""What a job needs beside all else: torch, a first environment."""

ARM_TASKS = ("cube-", "scene-", "puzzle-")
"""OGBench's tasks with a robot's arm. Their environments hold meshes; the others' 1 to 3 MiB."""
ARM_BYTES, ARM_OTHER_BYTES = 150 * 2**20, 2**30
"""Of each such environment, and of a job that has some (measured, docs/sweeps.md)."""

TRANSITION_BYTES = {"": (480, 1000), "humanoidmaze": (650, 2500)}
"""Of a transition of OGBench's, and the most while its file is read, by the beginning of the name.
What reading gives back is there for environments and updates, which come after it."""

GPU_TIMES = 1.3
"""What an H100 needed for updates, over `update_bytes`, which bounds the CPU's (docs/gpu.md)."""


class Need(NamedTuple):
    """Bytes of the host that a job needs.

    Attributes:
        data: For the transitions that it reads.
        environments: For the environments of evaluations and of the online stage.
        online: For online transitions: in use, and twice while they are saved.
        updates: For parameters, what updates hold, and copies for checkpoints.
    """

    data: int
    environments: int
    online: int
    updates: int

    def in_words(self) -> str:
        """Return the parts, in GiB."""
        return ", ".join(
            f"{value / 2**30:.1f} for {name}"
            for name, value in zip(
                ("transitions", "environments", "online transitions", "updates"), self, strict=True
            )
            if value >= 2**30 / 20
        )


def data_bytes(config: TrainConfig) -> tuple[int, int]:
    """Bound what transitions take, and the most while they are read.

    Nothing is known of one's own, and flat sets stay on disk.
    """
    name = find_task(config.env_name).dataset_name
    if config.dataset is not None or name is None:
        return 0, 0
    if config.recipe is not None:
        count = config.recipe.transitions
    elif name not in PUBLISHED or (expanded(config.dataset_dir) / f"{name}.flat").exists():
        return 0, 0
    else:
        count = PUBLISHED[name].transitions
    (_, sizes) = max(item for item in TRANSITION_BYTES.items() if name.startswith(item[0]))
    return count * sizes[0], count * sizes[1]


def environment_bytes(config: TrainConfig, runs: int) -> int:
    """Bound what environments take; nothing is known of one's own."""
    if not find_task(config.env_name).env_id.startswith(ARM_TASKS):
        return 0
    count = min(config.eval_envs, config.eval_episodes) + (runs if config.online_steps > 0 else 0)
    return ARM_OTHER_BYTES + count * ARM_BYTES


def online_bytes(config: TrainConfig, runs: int) -> int:
    """Return the size of the online transitions of all runs, which a stage has from its start."""
    obs_dim, act_dim = widths_of(config)
    return 4 * runs * config.online_steps * (2 * obs_dim + act_dim + 3)


def host_need(config: TrainConfig, runs: int, threads: int, *, gpu: bool = False) -> Need:
    """Bound what a job takes of the host; on a GPU's it has copies of what lies on the device."""
    online = online_bytes(config, runs)
    if gpu:
        online, updates = 2 * online, sizes_of(config, runs, threads)["held"]
    else:
        online, updates = 3 * online, run_bytes(config, runs, threads)
    return Need(data_bytes(config)[0], environment_bytes(config, runs), online, updates)


def memory_notes(jobs: Sequence[Job], resources: Resources) -> list[str]:
    """Return a sentence for each task of which a job may take more of the host than it is given."""
    needs: dict[str, tuple[int, str]] = {}
    for job in jobs:
        config = job.train_config()
        need = host_need(config, len(job.seeds), max(1, config.threads), gpu=resources.gpus > 0)
        _, reading = data_bytes(config)
        most = max((sum(need), need.in_words()), (reading, "while its transitions are read"))
        needs[job.env_name] = max(needs.get(job.env_name, most), most)
    return [
        f"a job of {name} may take {(OTHER_BYTES + needed) / 2**30:.1f} GiB ({words}), and "
        f"memory_gb of [resources] is {resources.memory_gb:g}; give it more, or fewer of these"
        for name, (needed, words) in needs.items()
        if OTHER_BYTES + needed > resources.memory_gb * 2**30
    ]


def seeds_that_fit(spec: Spec, config: TrainConfig) -> int:
    """Return how many seeds of a run fit into a job's memory, at least one."""
    resources = spec.resources
    threads, gpu = max(1, int(resources.cpus)), resources.gpus > 0

    def of_host(runs: int) -> int:
        return sum(host_need(config, runs, threads, gpu=gpu))

    def of_gpu(runs: int) -> int:
        updates = run_bytes(config, runs, threads, gpu=True)
        return data_bytes(config)[0] + updates + online_bytes(config, runs)

    bounds = [(resources.memory_gb * 2**30, of_host)]
    if gpu:
        bounds.append((resources.gpu_memory_gb * resources.gpus * 2**30, of_gpu))
    return max(
        1,
        min(
            1 + int((room - OTHER_BYTES - needed(1)) // (needed(2) - needed(1)))
            for room, needed in bounds
        ),
    )


def widths_of(config: TrainConfig) -> tuple[int, int]:
    """Return the widths of a task's observation and action; a bound of all for OGBench's."""
    task = find_task(config.env_name)
    if task.dataset_name is not None and config.dataset is None:
        return WIDEST_OBSERVATION, WIDEST_ACTION
    return own_widths(task.env_id, tuple(config.env_options.items()))


@functools.cache
def own_widths(env_id: str, options: tuple[tuple[str, Any], ...]) -> tuple[int, int]:
    """Return the widths of an environment, which may take its time to make."""
    interface = interface_of(env_id, **dict(options))
    return interface.obs_dim, interface.act_dim


def sizes_of(config: TrainConfig, runs: int, threads: int) -> dict[str, int]:
    """Return the parts of `update_bytes` of a run's updates."""
    return update_bytes(
        algorithm(config.algo), config.agent, *widths_of(config), runs=runs, threads=threads
    )


def run_bytes(config: TrainConfig, runs: int, threads: int, *, gpu: bool = False) -> int:
    """Bound the memory of a process's updates, on a CPU with the state that it keeps beside them.

    What a GPU's updates take of it is an estimate.
    """
    sizes = sizes_of(config, runs, threads)
    needed = sum(sizes.values())
    return int(GPU_TIMES * needed) if gpu else needed + sizes["held"]
