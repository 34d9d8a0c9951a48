"""How long a run takes, from a few updates of each of its agents on this machine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from trqam_fast.agents import Agent, algorithm
from trqam_fast.agents.config import CloningConfig
from trqam_fast.text import duration, short_count
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.history import History
from trqam_fast.training.seeding import make_randomness
from trqam_fast.training.updater import Source, Updater

PROBE_SECONDS = 0.1
LEAST_UPDATES = 500
"""Of a run whose time is worth knowing before it begins."""


def work_of(config: CloningConfig) -> dict[str, Any]:
    """Return what of hyperparameters an update's time depends on: of a float only if it is 0.

    So the values of a grid are measured once.
    """
    values = dataclasses.asdict(config)
    return {name: v != 0 if isinstance(v, float) else v for name, v in values.items()}


def seconds_per_call(call: Callable[[], object], budget: float = PROBE_SECONDS) -> float:
    """Return the median time of a call, of those that fit into `budget` seconds, at least two."""
    call()
    times: list[float] = []
    while len(times) < 2 or sum(times) < budget:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def seconds_per_update(agent: Agent, source: Source, budget: float = PROBE_SECONDS) -> float:
    """Return the seconds of an update of all runs of an agent, which it changes; on a CPU."""
    randomness = make_randomness(tuple(range(agent.runs)), "offline", "cpu")
    updater = Updater(agent, source, randomness, History(10_000), graph=False)
    return seconds_per_call(lambda: updater.run(1), budget)


def updates_left(config: TrainConfig, step: int = 0) -> dict[str, int]:
    """Return the updates after `step` by algorithm: of the pretraining and of the fine-tuning."""
    ends = config.stage_ends
    cloning = max(0, ends["pretrain"] - step)
    if not algorithm(config.algo).fine_tunes:
        return {"bc": cloning}
    offline = max(0, ends["offline"] - max(step, ends["pretrain"]))
    first = ends["offline"] + min(config.start_training, config.online_steps)
    online = max(0, ends["online"] - max(step, first)) * config.utd_ratio
    return {"bc": cloning, config.algo: offline + online}


def estimate(
    config: TrainConfig, step: int, make_agent: Callable[[str], Agent], source: Source
) -> str:
    """Return in words how long the updates that are left of a run take; nothing for a few.

    Args:
        config: The run's configuration, on a CPU.
        step: Step that it has come to.
        make_agent: Builds an agent of an algorithm, which is thrown away.
        source: Where batches come from.
    """
    parts, total, left = [], 0.0, updates_left(config, step)
    if sum(left.values()) < LEAST_UPDATES:
        return ""
    for algo, updates in left.items():
        if updates > 0:
            seconds = seconds_per_update(make_agent(algo), source)
            total += updates * seconds
            rate = f"{1 / seconds:{'.0f' if seconds < 1e-3 else '.3g'}}"
            parts.append(f"{short_count(updates)} of {algo} at {rate}/s")
    return f"updates: about {duration(total)} on this machine ({', '.join(parts)})"
