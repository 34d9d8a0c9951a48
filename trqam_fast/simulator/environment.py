"""Environments of gymnasium: their names, making them, beginning episodes, what MuJoCo holds.

gymnasium, MuJoCo and ogbench are imported where they are needed, so that training on arrays does
without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gymnasium


def registered() -> list[str]:
    """Return the names of all environments in gymnasium's registry, OGBench's among them."""
    import gymnasium
    import ogbench  # noqa: F401  (registers the environments)

    return list(gymnasium.registry)


def make_env(env_id: str, **options: Any) -> gymnasium.Env:
    """Return an environment whose `action_space.seed` has an effect.

    OGBench's manipulation environments return a new, unseeded space at each access and sample from
    it in `reset`, which leaves random forces and controls in the simulator.

    Args:
        env_id: Name in gymnasium's registry.
        options: Further arguments of `gymnasium.make`.
    """
    import gymnasium
    import ogbench  # noqa: F401  (registers the environments)

    env = gymnasium.make(env_id, disable_env_checker=True, **options)
    kind = type(env.unwrapped)
    if isinstance(getattr(kind, "action_space", None), property):
        space = env.unwrapped.action_space
        env.unwrapped.__class__ = type(kind.__name__, (kind,), {"action_space": space})
    return env


def task_env(env_id: str) -> gymnasium.Env:
    """Make a single-task environment whose task is set."""
    env = make_env(env_id)
    env.reset()
    return env


def env_sizes(env_id: str) -> tuple[int, int]:
    """Widths of an observation and of an action of an environment."""
    with contextlib.closing(make_env(env_id)) as env:
        return env.observation_space.shape[0], env.action_space.shape[0]


def begin(env: gymnasium.Env, rng: np.random.Generator) -> np.ndarray:
    """Begin an episode whose random numbers follow from `rng` alone; return the observation.

    numpy's global generator is left in the episode's state of it: some mazes draw from it in every
    step.
    """
    np.random.seed(int(rng.integers(2**32)))
    # The spaces sample in reset of some environments, from a generator of their own.
    env.action_space.seed(int(rng.integers(2**31)))
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    return np.asarray(observation)


@contextlib.contextmanager
def restored_global_state() -> Iterator[None]:
    """Leave numpy's global generator as it was."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which OGBench draws from, and leave it as it was."""
    with restored_global_state():
        np.random.seed(seed)
        yield


def relabel(env_id: str, env: gymnasium.Env, arrays: dict[str, np.ndarray]) -> None:
    """Set `rewards` and `masks` `[N]` of stored transitions to those of a single task.

    Args:
        env_id: The task's environment in gymnasium's registry.
        env: It, its task set.
        arrays: What `ogbench.load_dataset` returns with its additional arrays.
    """
    from ogbench.relabel_utils import relabel_dataset

    relabel_dataset(env_id, env, arrays)


def physics(env: gymnasium.Env) -> np.ndarray:
    """Everything that MuJoCo integrates: positions, velocities, controls, warm start, time."""
    import mujoco

    inner = env.unwrapped
    model = getattr(inner, "model", None) or inner._model
    data = getattr(inner, "data", None) or inner._data
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    return state


def draw_simply(env: gymnasium.Env) -> None:
    """Turn off shadows and smooth edges, which cost most of the time where no GPU draws.

    Physics does not depend on them. Call it before the first frame.
    """
    inner = env.unwrapped
    model = getattr(inner, "_model", None) or inner.model
    model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
