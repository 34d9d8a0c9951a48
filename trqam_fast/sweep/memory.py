"""How much memory a sweep's job takes, and so how many seeds it packs."""

from __future__ import annotations

from trqam_fast.agents import algorithm
from trqam_fast.memory import update_bytes
from trqam_fast.sweep.spec import Spec
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.interface import own_interface

# The widest observation and action of OGBench's tasks with states, rounded up.
WIDEST_OBSERVATION, WIDEST_ACTION = 128, 21

# What a job needs beside its updates: torch, the simulators, the data, evaluations.
OTHER_BYTES = 2**30

GPU_TIMES = 1.3
"""What an H100 needed for updates, over `update_bytes`, which bounds the CPU's (docs/gpu.md)."""


def seeds_that_fit(spec: Spec, config: TrainConfig) -> int:
    """Return how many seeds of a run fit into a job's memory, at least one."""
    resources = spec.resources
    room = resources.memory_gb * 2**30 - OTHER_BYTES
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
