"""What a run says and keeps of its environment: widths, bounds, success, what a resume restores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trqam_fast.damage import reading
from trqam_fast.data.dataset import Transitions
from trqam_fast.data.tasks import find_task
from trqam_fast.files import write_json
from trqam_fast.runs.values import load_json
from trqam_fast.simulator.bounds import bounds_in_words
from trqam_fast.simulator.environment import Interface, Parts, interface_of, names_of
from trqam_fast.training.config import TrainConfig

FILE = "task.json"


class Sizes(NamedTuple):
    """What a policy takes and gives, as a run folder keeps it.

    Attributes:
        obs_dim: Width of an observation, O.
        low: Lower bounds of the environment's own actions, `[A]`.
        high: Upper bounds, likewise.
        parts: Parts of a dict observation, in the order in which they are joined; one empty path
            stands for an array, None for a run that did not keep them.
        act_shape: Shape of the environment's own actions, of A numbers; None stands for `[A]`.
    """

    obs_dim: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    parts: Parts | None = None
    act_shape: tuple[int, ...] | None = None

    @property
    def act_dim(self) -> int:
        """Width of an action, A."""
        return len(self.low)


def own_interface(config: TrainConfig, *, trying: bool = False) -> Interface | None:
    """Return the interface of an environment or of data of one's own, None for OGBench's.

    Args:
        config: The run's configuration.
        trying: Begin an episode of one's own environment and take a step.

    Raises:
        UsageError: it cannot be made, or fails when it is tried.
    """
    task = find_task(config.env_name)
    if task.dataset_name is not None and config.dataset is None:
        return None
    return interface_of(task.env_id, trying=trying, **config.env_options)


def describe(config: TrainConfig, interface: Interface) -> list[str]:
    """Return what is said of one's own environment at the start."""
    limit = (
        f"at most {interface.steps:.0f} steps" if math.isfinite(interface.steps) else "any length"
    )
    fallback = config.success_return is None and interface.success_key is None
    success = "an episode that terminates" if fallback else f"its info's {interface.success_key}"
    if config.success_return is not None:
        success = f"a return of {config.success_return:g} or more"
    names = names_of(interface.parts)
    lines = [
        f"environment {config.env_name}: {interface.obs_dim} numbers an observation"
        f"{names and f' ({names})'}, "
        f"{interface.act_dim} an action in {bounds_in_words(interface.low, interface.high)}, "
        f"scaled to [-1, 1]; episodes of {limit}; success: {success}"
    ]
    if fallback:
        lines.append(
            "note: the info of its first step has no success or is_success, so an episode that "
            "terminates counts as one; where terminating is a failure, or never happens, pass "
            "--success-return, the return from which an episode counts"
        )
    if math.isinf(interface.steps):
        lines.append(
            "note: the environment shows no step limit; an episode that does not end is played for "
            "ever, so pass --max-episode-steps unless all end"
        )
    if config.online_steps > 0 and not interface.mujoco:
        lines.append(
            "resume: weights, batches and logs are exact to the bit on a CPU; the environment "
            "shows no MuJoCo state, so its episode is played again from its seed and compared by "
            "its last observation: where that differs, a new episode begins and the run is no "
            "longer the uninterrupted one"
        )
    return lines


def write_sizes(folder: Path, dataset: Transitions, interface: Interface | None) -> None:
    """Keep the sizes of a run's task in its folder."""
    ones = np.ones(dataset.act_dim)
    sizes = sizes_in(interface or Interface(dataset.obs_dim, -ones, ones, math.inf, True))
    write_json(folder / FILE, sizes._asdict())


def sizes_in(interface: Interface) -> Sizes:
    """Return what a policy takes and gives in an environment."""
    return Sizes(
        interface.obs_dim, tuple(interface.low.tolist()), tuple(interface.high.tolist()),
        interface.parts, interface.act_shape,
    )  # fmt: skip


def read_sizes(folder: Path, config: TrainConfig) -> Sizes:
    """Return the sizes of a run's task; of a run without the file from its environment.

    Raises:
        UsageError: the file is damaged, or there is neither it nor the environment.
        Unreadable: the system refuses.
    """
    path = folder / FILE
    if not path.exists():
        return sizes_in(interface_of(find_task(config.env_name).env_id, **config.env_options))
    with reading(path, "is no description of a task", "delete it if the environment is there"):
        return sizes_of(load_json(path))


def sizes_of(values: dict[str, Any]) -> Sizes:
    """Return the sizes that a file tells.

    Raises:
        KeyError, TypeError, ValueError: it does not, or they are impossible.
    """
    obs_dim = values["obs_dim"]
    low, high = (tuple(map(float, values[name])) for name in ("low", "high"))
    if not isinstance(obs_dim, int) or not 1 <= obs_dim < 2**31:
        raise ValueError(f"observations of {obs_dim!r} numbers")
    if len(low) != len(high) or not low:
        raise ValueError("its bounds contradict each other")
    parts, act_shape = values.get("parts"), values.get("act_shape")
    if parts is not None:
        parts = tuple(map(tuple, parts))
        if not parts or not all(isinstance(name, str | int) for path in parts for name in path):
            raise ValueError("parts of an observation without names")
    if act_shape is not None:
        act_shape = tuple(act_shape)
        whole = all(isinstance(size, int) and size > 0 for size in act_shape)
        if not whole or math.prod(act_shape) != len(low):
            raise ValueError(f"actions of {len(low)} numbers in the shape {list(act_shape)}")
    return Sizes(obs_dim, low, high, parts, act_shape)
