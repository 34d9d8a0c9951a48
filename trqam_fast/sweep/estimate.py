"""How long a sweep takes, from short measurements on this machine."""

from __future__ import annotations

import heapq
import math
import os
from functools import cache
from typing import Any

import numpy as np
import torch

from trqam_fast.agents import algorithm
from trqam_fast.agents.config import CloningConfig
from trqam_fast.data.dataset import Dataset
from trqam_fast.data.tasks import find_task
from trqam_fast.errors import UsageError
from trqam_fast.evaluation.episodes import Request
from trqam_fast.evaluation.policy import ROWS, choose_chunks
from trqam_fast.kernels import Backend, Precision
from trqam_fast.simulator.environment import begin, interface_of, make_env
from trqam_fast.sweep.memory import run_bytes
from trqam_fast.sweep.plan import Job
from trqam_fast.training.backend import settle_backend
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.estimate import (
    seconds_per_call,
    seconds_per_update,
    updates_left,
    work_of,
)

START_SECONDS = 10.0
"""Of a process: imports, Ray's worker, reading the data."""

PROBE_SECONDS = 1.0
PROBE_ROWS = 1000
UNLIMITED = 1000
"""Steps that an episode is taken to have in an environment without a limit."""


def random_data(obs_dim: int, act_dim: int, rows: int) -> Dataset:
    """Return transitions of random numbers, in one trajectory."""
    draw = np.random.default_rng(0).standard_normal
    observations = draw((rows + 1, obs_dim))
    terminals = np.zeros(rows)
    terminals[-1] = 1
    return Dataset.from_arrays(
        {
            "observations": observations[:-1],
            "next_observations": observations[1:],
            "actions": draw((rows, act_dim)).clip(-1, 1),
            "rewards": -np.ones(rows),
            "masks": np.ones(rows),
            "terminals": terminals,
        }
    )


@cache
def probe_environment(
    env_id: str, options: tuple[tuple[str, Any], ...] = ()
) -> tuple[int, int, int, float]:
    """Return widths of observation and action, steps of the longest episode, seconds a step.

    Args:
        env_id: What `make_env` takes.
        options: Its further arguments, as pairs.
    """
    env = make_env(env_id, **dict(options))
    interface = interface_of(env_id, **dict(options))
    try:
        observation = begin(env, np.random.default_rng(0))
        action = np.zeros(interface.act_dim, dtype=np.float32)

        def step() -> None:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

        seconds = seconds_per_call(step, PROBE_SECONDS)
        return (
            len(observation),
            len(action),
            UNLIMITED if interface.steps == math.inf else int(interface.steps),
            seconds,
        )
    finally:
        env.close()


def probe_rows(config: CloningConfig) -> int:
    """Return the transitions of a measurement: some sequences of actions must fit into them."""
    return max(PROBE_ROWS, 2 * config.horizon_length)


def machine_bytes() -> int:
    """Return the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(job: Job, config: TrainConfig, obs_dim: int, act_dim: int) -> None:
    """Raise `UsageError` if measuring a job would take more memory than this machine has."""
    needed = run_bytes(config, len(job.seeds), max(1, config.threads))
    needed += 4 * probe_rows(config.agent) * (2 * obs_dim + act_dim + 3) * np.float64().itemsize
    if needed > machine_bytes():
        raise UsageError(
            f"an update of {job.name} needs about {needed / 2**30:,.0f} GiB, but this machine has "
            f"{machine_bytes() / 2**30:.0f}; use smaller sizes"
        )


PROBED: dict[str, tuple[float, float]] = {}
"""What `probe_agent` has measured."""


def probe_agent(
    algo: str,
    config: CloningConfig,
    obs_dim: int,
    act_dim: int,
    runs: int,
    backend: Backend,
    precision: Precision,
) -> tuple[float, float]:
    """Return the seconds of an update of all runs, and of a policy call's row; measured once."""
    sizes = (obs_dim, act_dim, runs, torch.get_num_threads())
    case = repr((algo, work_of(config), sizes, backend, precision))
    if case not in PROBED:
        agent = algorithm(algo)(
            config, obs_dim, act_dim, list(range(runs)), backend=backend, precision=precision
        )
        data = random_data(obs_dim, act_dim, probe_rows(config))
        noise = np.zeros((agent.candidates, agent.noise_dim))
        requests = [Request(np.zeros(obs_dim), noise)] * ROWS
        update = seconds_per_update(agent, data, PROBE_SECONDS)
        act = seconds_per_call(lambda: choose_chunks(agent, 0, requests), PROBE_SECONDS) / ROWS
        PROBED[case] = update, act
    return PROBED[case]


def job_seconds(job: Job) -> float:
    """Estimate the seconds of a CPU job that runs alone, without making data.

    Evaluations are counted with episodes of full length, which is the most that they can take.
    """
    config = job.train_config()
    obs_dim, act_dim, steps, step_seconds = probe_environment(
        find_task(job.env_name).env_id, tuple(config.env_options.items())
    )
    check_memory(job, config, obs_dim, act_dim)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        settled = settle_backend(config, act_dim)
        assert settled.precision != "auto"
        update, act = probe_agent(
            job.algo, config.agent, obs_dim, act_dim, len(job.seeds), settled.backend,
            settled.precision,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    updates = sum(updates_left(config).values())
    online = 0 if job.pretrains else config.online_steps
    episodes = evaluations(job, config) * config.eval_episodes * len(job.seeds)
    playing = episodes * steps * (step_seconds + act / config.agent.chunk_length)
    acting = online * len(job.seeds) * (step_seconds + act * ROWS)
    return START_SECONDS + updates * update + playing + acting


def evaluations(job: Job, config: TrainConfig) -> int:
    """Return how often a job evaluates: at the start, in intervals, and at the ends of stages."""
    if job.pretrains:
        return 1
    count = 1
    for steps in (config.offline_steps, config.online_steps):
        if steps > 0:
            count += -(-steps // config.eval_interval) if config.eval_interval else 1
    return count


def makespan(jobs: list[Job], seconds: dict[str, float], slots: int) -> float:
    """Return when the last job ends if `slots` run at a time, each after the one it needs."""
    ends: dict[str, float] = {}
    free, left = [0.0] * slots, list(jobs)
    while left:
        place = heapq.heappop(free)
        ready = {
            job.name: max(place, ends.get(job.after or "", 0.0))
            for job in left
            if job.after is None or job.after in ends
        }
        name = min(ready, key=ready.__getitem__)
        ends[name] = ready[name] + seconds[name]
        heapq.heappush(free, ends[name])
        left = [job for job in left if job.name != name]
    return max(ends.values(), default=0.0)
