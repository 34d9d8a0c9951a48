"""The registry of tasks: what ``--env-name`` may be, OGBench's names among it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trqam_fast.data.names import known_tasks, nearest, parse_task
from trqam_fast.errors import UsageError
from trqam_fast.simulator.environment import registered


@dataclass(frozen=True)
class Task:
    """An environment, and the data that belong to it.

    Attributes:
        env_name: The task's name, in configurations, folders and tables.
        env_id: What `make_env` takes.
        dataset_name: The dataset that OGBench has for it; None where data must be named.
    """

    env_name: str
    env_id: str
    dataset_name: str | None = None


def single_task(name: str) -> Task | None:
    """Return a single task of OGBench, e.g. ``cube-double-play-singletask-task1-v0``."""
    if name not in known_tasks():
        return None
    parts = parse_task(name)
    return Task(name, parts.env_id, parts.dataset_name)


def gymnasium_id(name: str) -> Task | None:
    """Return an environment of gymnasium's registry, e.g. ``Pendulum-v1``."""
    return Task(name, name) if name in registered() else None


def factory(name: str) -> Task | None:
    """Return ``MODULE:FACTORY``, or gymnasium's ``MODULE:ID``; nothing is imported before use."""
    return Task(name, name) if ":" in name else None


KINDS: dict[str, Callable[[str], Task | None]] = {
    "OGBench single task": single_task,
    "gymnasium id": gymnasium_id,
    "MODULE:FACTORY": factory,
}
"""The kinds of tasks, in the order in which a name is looked up."""


def find_task(name: str) -> Task:
    """Return the task of a name.

    Raises:
        UsageError: there is none; the message names the nearest ones.
    """
    for find in KINDS.values():
        task = find(name)
        if task is not None:
            return task
    *first, last = KINDS
    hint = nearest(name, list(dict.fromkeys([*known_tasks(), *registered()])))
    raise UsageError(
        f"--env-name, or --env-id, is {name!r}; name an {', '.join(first)} or {last}{hint}"
    )
