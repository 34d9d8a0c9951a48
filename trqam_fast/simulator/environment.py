"""Environments of gymnasium: their names, making them, beginning episodes, what MuJoCo holds.

gymnasium, MuJoCo and ogbench are imported where they are needed, so that training on arrays does
without them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import gymnasium


def registered() -> list[str]:
    """Return the names of all environments in gymnasium's registry, OGBench's among them."""
    import gymnasium
    import ogbench  # noqa: F401  (registers the environments)

    return list(gymnasium.registry)


def make_env(
    env_id: str,
    *,
    success_return: float | None = None,
    max_episode_steps: int | None = None,
    **options: Any,
) -> gymnasium.Env:
    """Return an environment whose `action_space.seed` has an effect.

    OGBench's manipulation environments return a new, unseeded space at each access and sample from
    it in `reset`, which leaves random forces and controls in the simulator. One of another origin,
    or in a wrapper with other spaces, is wrapped so that its actions lie in [-1, 1] and its info
    has a success, as OGBench's do.

    Args:
        env_id: Name in gymnasium's registry, or ``MODULE:FACTORY``.
        success_return: Undiscounted return of an episode that counts as success, whatever else
            the environment says.
        max_episode_steps: Steps after which an episode is truncated, in place of the limit that is
            registered; a shorter one of a factory's own stays.
        options: Further arguments of `gymnasium.make` or of the factory.

    Raises:
        UsageError: it cannot be made, or has no bounded actions.
    """
    import ogbench  # noqa: F401  (registers the environments)

    from trqam_fast.simulator.own import Standard, make

    env = make(env_id, options, max_episode_steps)
    if not (is_ogbench(env) and is_standard(env)) or success_return is not None:
        env = Standard(env, env_id, success_return)
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


def is_standard(env: gymnasium.Env) -> bool:
    """Return whether actions lie in [-1, 1] and observations in a Box."""
    from gymnasium.spaces import Box

    actions, observations = env.action_space, env.observation_space
    if not (isinstance(actions, Box) and isinstance(observations, Box)):
        return False
    return bool((actions.low == -1.0).all() and (actions.high == 1.0).all())


def is_ogbench(env: gymnasium.Env) -> bool:
    """Return whether an environment is OGBench's."""
    return type(env.unwrapped).__module__.partition(".")[0] == "ogbench"


Parts = tuple[tuple[str, ...], ...]
"""Paths of the parts of a dict observation as they are joined; one empty path is an array."""


def names_of(parts: Iterable[tuple[str, ...]]) -> str:
    """Return the parts of an observation as a message shows them."""
    return ", ".join("/".join(map(str, path)) for path in parts)


class Interface(NamedTuple):
    """What data and policies must fit.

    Attributes:
        obs_dim: Width of an observation.
        low: Lower bounds of the environment's own actions, float64 `[A]`; [-1, 1] stands for them
            everywhere else.
        high: Upper bounds, likewise.
        steps: Steps after which an episode is truncated, inf if never.
        mujoco: Whether MuJoCo's whole state can be read, so that a resumed run can compare it.
        parts: Parts of an observation, in order.
        act_shape: Shape of the environment's own actions, of A numbers; None stands for `[A]`.
        success_key: What its info calls success, None if it was not seen to have one.
        pictures: Whether there are any in its observations.
    """

    obs_dim: int
    low: np.ndarray
    high: np.ndarray
    steps: float
    mujoco: bool
    parts: Parts = ((),)
    act_shape: tuple[int, ...] | None = None
    success_key: str | None = None
    pictures: bool = False

    @property
    def act_dim(self) -> int:
        """Width of an action."""
        return len(self.low)


def interface_of(env_id: str, *, trying: bool = False, **options: Any) -> Interface:
    """Return what an environment takes and gives.

    Args:
        env_id: See `make_env`.
        trying: Begin an episode and take a step in one that is not OGBench's.
        options: Further arguments of `make_env`.

    Raises:
        UsageError: it cannot be made, or fails when it is tried.
    """
    from gymnasium.spaces import Box

    from trqam_fast.simulator.own import Standard, has_pictures, parts_of, steps_of, try_out

    with contextlib.closing(make_env(env_id, **options)) as env:
        success_key = "success" if is_ogbench(env) else None
        if trying and isinstance(env, Standard) and not is_ogbench(env):
            success_key = try_out(env)
        inner = env.env if isinstance(env, Standard) else env
        space = inner.action_space
        assert isinstance(space, Box)  # which `make_env` sees to
        low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
        return Interface(
            widths(env)[0], low, high, steps_of(env), simulation(env) is not None,
            parts_of(inner.observation_space), space.shape, success_key,
            has_pictures(inner.observation_space),
        )  # fmt: skip


def widths(env: gymnasium.Env) -> tuple[int, int]:
    """Widths of an observation and an action of an environment of `make_env`."""
    observations, actions = env.observation_space.shape, env.action_space.shape
    assert observations is not None and actions is not None  # as both are boxes
    return observations[0], actions[0]


@functools.cache
def env_sizes(env_id: str) -> tuple[int, int]:
    """Widths of an observation and an action of an environment of OGBench, which is made once."""
    with contextlib.closing(make_env(env_id)) as env:
        return widths(env)


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


def simulation(env: gymnasium.Env) -> tuple[Any, Any] | None:
    """Return MuJoCo's model and data of an environment, None if it shows none."""
    import mujoco

    inner = env.unwrapped
    for names in (("model", "data"), ("_model", "_data")):
        model, data = (getattr(inner, name, None) for name in names)
        if isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData):
            return model, data
    return None


def physics(env: gymnasium.Env) -> np.ndarray:
    """Everything that MuJoCo integrates: positions, velocities, controls, warm start, time.

    Empty for an environment that shows no MuJoCo.
    """
    import mujoco

    found = simulation(env)
    if found is None:
        return np.empty(0)
    model, data = found
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    return state


def draw_simply(env: gymnasium.Env) -> None:
    """Turn off shadows and smooth edges, which cost most of the time where no GPU draws.

    Physics does not depend on them. Call it before the first frame.
    """
    found = simulation(env)
    if found is not None:
        model, _ = found
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
