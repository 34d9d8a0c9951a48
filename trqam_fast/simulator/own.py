"""Environments of one's own: found by name, and given what the trainer expects of any.

Imported only where one is made, as it imports gymnasium.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from trqam_fast.damage import reason_of
from trqam_fast.errors import RunError, UsageError
from trqam_fast.importing import import_own
from trqam_fast.simulator.bounds import unscaled
from trqam_fast.simulator.environment import Parts, begin, restored_global_state
from trqam_fast.text import printable

SUCCESS_KEYS = ("success", "is_success")
"""What environments call success in their info."""


RESET = "reset(*, seed=None, options=None) -> (observation, info)"
STEP = "step(action) -> (observation, reward, terminated, truncated, info)"
"""What gymnasium expects of an environment."""


def make(
    env_id: str, options: dict[str, Any], max_episode_steps: int | None = None
) -> gymnasium.Env:
    """Make an environment by its name.

    Args:
        env_id: A name in gymnasium's registry, or ``MODULE:FACTORY``: `FACTORY(**options)` returns
            an environment; where the module has none of that name, it is one in the registry that
            importing the module adds.
        options: Arguments of `gymnasium.make` or of the factory.
        max_episode_steps: Steps after which an episode is truncated; None leaves it to the
            environment.

    Raises:
        UsageError: there is none, or it cannot be made.
    """
    factory = find_factory(env_id)
    try:
        if factory is None:
            limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
            return gymnasium.make(env_id, disable_env_checker=True, **limit, **options)
        env = factory(**options)
    except Exception as error:
        kind = type(error).__name__
        raise UsageError(
            f"--env-id {env_id!r} cannot be made ({kind}: {reason_of(error)}); make it in Python "
            "to see where"
        ) from error
    if not isinstance(env, gymnasium.Env):
        raise UsageError(
            f"--env-id {env_id!r} returned a {type(env).__name__}; return a gymnasium.Env"
        )
    if max_episode_steps is not None:
        env = gymnasium.wrappers.TimeLimit(env, max_episode_steps)
    return env


def find_factory(env_id: str) -> Callable[..., Any] | None:
    """Return what ``MODULE:FACTORY`` names, or None for a name in gymnasium's registry.

    Raises:
        UsageError: the module cannot be imported.
    """
    name, separator, attribute = env_id.partition(":")
    if not separator:
        return None
    found = getattr(import_own("--env-id", env_id), attribute, None)
    if found is None and attribute not in gymnasium.registry:
        raise UsageError(
            f"--env-id is {env_id!r}, but {name} has no {attribute} and registers no environment "
            "of that name; name a function or class that returns an environment"
        )
    return found


class Standard(gymnasium.Wrapper):
    """An environment with flat observations, actions in [-1, 1]^A and a success in its info.

    `info["success"]` is, in this order: whether the episode's return has reached `success_return`
    where that is given; what the environment itself calls ``success`` or ``is_success``; whether
    the episode terminated.

    Args:
        env: The environment; its action space is a bounded `Box` of any shape, its observation
            space anything that gymnasium flattens to one.
        name: What it is called in messages.
        success_return: Undiscounted return of an episode that counts as success.

    Attributes:
        low: Lower bounds of the environment's own actions, float64 `[A]`.
        high: Upper bounds, likewise.
        success_key: What the newest step's own info calls success, None if it has none.

    Raises:
        UsageError: its spaces are others.
        RunError: from `reset` and `step`, an observation that its space does not hold, a reward
            that is no finite number, or a success that is neither true nor false.
    """

    def __init__(self, env: gymnasium.Env, name: str, success_return: float | None) -> None:
        super().__init__(env)
        self.name, self.success_return, self.total = name, success_return, 0.0
        self.success_key: str | None = None
        space = env.action_space
        if not isinstance(space, spaces.Box):
            raise UsageError(f"{name} has actions in {space}; only numbers in a Box can be learned")
        if space.dtype.kind != "f":
            raise UsageError(f"{name} has actions of {space.dtype}; use a Box of floats")
        self.low = space.low.astype(np.float64).ravel()
        self.high = space.high.astype(np.float64).ravel()
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all()):
            raise UsageError(f"{name} has actions without bounds, {space}; give it finite ones")
        if not (self.low < self.high).all():
            raise UsageError(f"{name} has actions that cannot vary, {space}; leave those out")
        self.action_space = spaces.Box(-1.0, 1.0, self.low.shape, np.float32)
        flat = spaces.flatten_space(env.observation_space)
        if not isinstance(flat, spaces.Box):
            raise UsageError(f"{name} has observations in {env.observation_space}; use a Box")
        self.observation_space = flat

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        """Begin an episode; the environment's own action space is seeded with it."""
        if seed is not None:
            self.env.action_space.seed(seed)
        self.total = 0.0
        observation, info = self.env.reset(seed=seed, options=options)
        return self.flat(observation), info

    def step(self, action: np.ndarray) -> tuple:
        """Take an action `[A]` in [-1, 1]."""
        own = unscaled(action, self.low, self.high)
        space = self.env.action_space
        observation, reward, terminated, truncated, info = self.env.step(
            own.reshape(space.shape).astype(space.dtype)
        )
        given, reward = reward, number_of(reward)
        if not math.isfinite(reward):
            raise RunError(
                f"{self.name} gave the reward {printable(given)}; return a finite number"
            )
        self.total += reward
        self.success_key = next((key for key in SUCCESS_KEYS if info.get(key) is not None), None)
        info = {**info, "success": self.succeeded(info, terminated)}
        return self.flat(observation), reward, terminated, truncated, info

    def succeeded(self, info: dict[str, Any], terminated: bool) -> float:
        """Return 1 for success so far, else 0."""
        if self.success_return is not None:
            return float(self.total >= self.success_return)
        key = self.success_key
        if key is None:
            return float(terminated)
        success = number_of(info[key])
        if success not in (0, 1):
            raise RunError(
                f"{self.name} gave the info {key} {printable(info[key])}; return True or False, or "
                "1 or 0"
            )
        return success

    def flat(self, observation: Any) -> np.ndarray:
        """Return an observation as `[O]`."""
        for space, part in leaves(self.env.observation_space, observation):
            check_kept(space, part, self.name)
        flat = np.asarray(spaces.flatten(self.env.observation_space, observation))
        if flat.shape != self.observation_space.shape:
            raise RunError(
                f"{self.name} gave an observation of {flat.size} numbers, but its "
                f"observation_space has {spaces.flatdim(self.observation_space)}; return what the "
                "space says"
            )
        if not np.isfinite(flat).all():
            index = int(np.argmin(np.isfinite(flat)))
            raise RunError(
                f"{self.name} gave an observation with {flat[index]} as number {index}; return "
                "finite numbers"
            )
        return flat


def number_of(value: Any) -> float:
    """Return the number that a scalar, or an array of one number, is; nan for anything else."""
    array = np.asarray(value)
    return float(array.item()) if array.size == 1 and array.dtype.kind in "biuf" else math.nan


def leaves(space: gymnasium.Space, observation: Any) -> Iterator[tuple[gymnasium.Space, Any]]:
    """Yield the spaces that others are made of, and what an observation has in each."""
    match space:
        case spaces.Dict():
            for name, part in space.items():
                yield from leaves(part, observation[name])
        case spaces.Tuple():
            for part, value in zip(space, observation, strict=True):
                yield from leaves(part, value)
        case _:
            yield space, observation


def check_kept(space: gymnasium.Space, observation: Any, name: str) -> None:
    """Raise `RunError` where a space of whole numbers would change those of an observation."""
    if not isinstance(space, spaces.Box | spaces.MultiBinary) or space.dtype.kind == "f":
        return
    found = np.asarray(observation)
    if found.dtype == space.dtype:
        return
    with np.errstate(invalid="ignore"):
        changed = found != found.astype(space.dtype)
    if np.any(changed):
        raise RunError(
            f"{name} gave an observation with {found[changed][0]}, of {found.dtype}, but its "
            f"observation_space has {space.dtype}; give the space the dtype of the observations"
        )


def try_out(env: Standard) -> str | None:
    """Begin an episode and take a step, the middle action, as training will.

    Returns:
        What the step's info calls success, None if it has none.

    Raises:
        UsageError: either fails; the sentence says what is expected.
    """
    calls = {
        RESET: lambda: begin(env, np.random.default_rng(0)),
        STEP: lambda: env.step(np.zeros(env.low.shape, np.float32)),
    }
    with restored_global_state():
        for expected, call in calls.items():
            try:
                call()
            except RunError as error:
                raise UsageError(str(error)) from error
            except Exception as error:
                raise UsageError(
                    f"{env.name} fails at the first {expected.partition('(')[0]} "
                    f"({type(error).__name__}: {reason_of(error)}); expected {expected} of "
                    "gymnasium; call it in Python to see where"
                ) from error
    return env.success_key


def parts_of(space: gymnasium.Space) -> Parts:
    """Return the parts of observations, nested ones too, in the order in which they are joined.

    That of a `Dict`: by name if it was made of a plain dict, else as it was given.
    """
    if not isinstance(space, spaces.Dict):
        return ((),)
    return tuple((name, *path) for name, part in space.items() for path in parts_of(part))


def has_pictures(space: gymnasium.Space) -> bool:
    """Return whether observations hold pictures: three dimensions, or bytes in two."""
    match space:
        case spaces.Dict():
            return any(map(has_pictures, space.values()))
        case spaces.Tuple():
            return any(map(has_pictures, space))
        case spaces.Box():
            return len(space.shape) >= (2 if space.dtype == np.uint8 else 3)
    return False


def steps_of(env: gymnasium.Env) -> float:
    """Return the steps after which an episode of an environment is truncated, inf if never."""
    steps = math.inf
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            steps = min(steps, env._max_episode_steps)
        env = env.env
    return steps
