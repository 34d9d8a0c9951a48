"""OGBench names: which environment and which dataset a single-task name stands for."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import gymnasium
import ogbench  # noqa: F401  (registers the environments)

from trqam_fast.errors import UsageError


@dataclass(frozen=True)
class TaskName:
    """A single-task name, taken apart.

    Attributes:
        env_name: The whole name, e.g. ``cube-double-play-singletask-task1-v0``.
        env_id: The environment in gymnasium's registry, ``cube-double-singletask-task1-v0``.
        dataset_name: Stem of the dataset's file, ``cube-double-play-v0``.
    """

    env_name: str
    env_id: str
    dataset_name: str


def kinds_of(env_id: str) -> tuple[str, ...]:
    """Dataset kinds that OGBench publishes for an environment."""
    if env_id.startswith(("cube", "scene", "puzzle")):
        return ("play", "noisy")
    if env_id.startswith("antsoccer") or env_id.startswith("humanoidmaze"):
        return ("navigate", "stitch")
    return ("navigate", "stitch", "explore") if env_id.startswith("ant") else ("navigate", "stitch")


def known_tasks() -> list[str]:
    """Every single-task name whose observations are states."""
    names = []
    for env_id in gymnasium.registry:
        head, separator, tail = env_id.partition("-singletask")
        if separator and not head.startswith("visual"):
            names += [f"{head}-{kind}-singletask{tail}" for kind in kinds_of(env_id)]
    return names


def parse_task(env_name: str) -> TaskName:
    """Take a single-task name apart.

    Raises:
        UsageError: OGBench has no such single task; the message names the nearest ones.
    """
    names = known_tasks()
    if env_name not in names:
        near = difflib.get_close_matches(env_name, names, n=3, cutoff=0.3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise UsageError(f"--env-name {env_name!r} is not an OGBench single task{hint}")
    head, _, tail = env_name.partition("-singletask")
    head, _, kind = head.rpartition("-")
    version = tail.rpartition("-")[2]
    return TaskName(env_name, f"{head}-singletask{tail}", f"{head}-{kind}-{version}")
