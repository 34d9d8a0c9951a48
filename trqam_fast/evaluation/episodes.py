"""Episodes whose outcome follows from (seed, episode) and the policy alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import ogbench  # noqa: F401  (registers the environments)


class EpisodeResult(NamedTuple):
    """Outcome of one episode: `success` of the final step, undiscounted return, length."""

    success: float
    episode_return: float
    length: int


class Start(NamedTuple):
    """Order to begin an episode.

    Attributes:
        episode: Number of the episode.
        seed: Seed of the evaluation.
        noise_shape: Shape of the noise that the policy takes for each chunk, (N, D).
        video: File for a video of the episode, or None.
    """

    episode: int
    seed: int
    noise_shape: tuple[int, int]
    video: str | None = None


class Request(NamedTuple):
    """What the policy needs for the next chunk: `[O]` and the episode's own noise `[N, D]`."""

    observation: np.ndarray
    noise: np.ndarray


def make_env(env_id: str, **options: Any) -> gymnasium.Env:
    """Return an environment whose `action_space.seed` has an effect.

    OGBench's manipulation environments return a new, unseeded space at each access and sample from
    it in `reset`, which leaves random forces and controls in the simulator.

    Args:
        env_id: Name in gymnasium's registry.
        options: Further arguments of `gymnasium.make`.
    """
    env = gymnasium.make(env_id, disable_env_checker=True, **options)
    kind = type(env.unwrapped)
    if isinstance(getattr(kind, "action_space", None), property):
        space = env.unwrapped.action_space
        env.unwrapped.__class__ = type(kind.__name__, (kind,), {"action_space": space})
    return env


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


class Slot:
    """One environment, reused from episode to episode, and the episode it is playing."""

    def __init__(self, env_id: str, options: dict[str, Any]) -> None:
        self.env = make_env(env_id, **options)
        self.video = None

    def start(self, order: Start) -> Request:
        """Begin an episode whose random numbers follow from (seed, episode) alone."""
        self.episode, self.noise_shape = order.episode, order.noise_shape
        self.rng = np.random.default_rng([order.seed, order.episode])
        observation = begin(self.env, self.rng)
        self.global_state = np.random.get_state()
        self.total, self.length = 0.0, 0
        self.open_video(order.video)
        return self.ask(observation)

    def ask(self, observation: np.ndarray) -> Request:
        """Draw the noise of the next chunk."""
        return Request(observation, self.rng.standard_normal(self.noise_shape))

    def play(self, chunk: np.ndarray) -> Request | EpisodeResult:
        """Execute a chunk `[H, A]` open loop, or as much of it as the episode lasts."""
        np.random.set_state(self.global_state)
        for action in np.clip(chunk, -1.0, 1.0):
            observation, reward, terminated, truncated, info = self.env.step(action)
            self.total += float(reward)
            self.length += 1
            if self.video is not None:
                self.video.add(self.env.render())
            if terminated or truncated:
                self.open_video(None)
                return EpisodeResult(float(info["success"]), self.total, self.length)
        self.global_state = np.random.get_state()
        return self.ask(observation)

    def open_video(self, path: str | None) -> None:
        """Finish the video, if one is being written, and begin another unless `path` is None."""
        if self.video is not None:
            self.video.close()
            self.video = None
        if path is not None:
            from trqam_fast.evaluation.video import VideoWriter, draw_simply

            draw_simply(self.env)
            first = self.env.render()
            self.video = VideoWriter(path, first.shape[1::-1], self.env.metadata.get("render_fps"))
            self.video.add(first)


class Troupe:
    """The environments of one process, made when they are first needed."""

    def __init__(self, env_id: str, options: dict[str, Any]) -> None:
        self.env_id, self.options = env_id, options
        self.slots: dict[int, Slot] = {}

    def play(
        self, orders: Sequence[tuple[int, Start | np.ndarray]]
    ) -> list[Request | EpisodeResult]:
        """Carry out one order for each of several slots; numpy's global generator is kept.

        Args:
            orders: Pairs of a slot's number and what it has to do: start, or play a chunk.

        Returns:
            One reply for each order.
        """
        replies = []
        with restored_global_state():
            for number, order in orders:
                if number not in self.slots:
                    self.slots[number] = Slot(self.env_id, self.options)
                slot = self.slots[number]
                starting = isinstance(order, Start)
                replies.append(slot.start(order) if starting else slot.play(order))
        return replies

    def close(self) -> None:
        """Close all environments."""
        for slot in self.slots.values():
            slot.open_video(None)
            slot.env.close()
        self.slots.clear()


@contextlib.contextmanager
def restored_global_state() -> Iterator[None]:
    """Leave numpy's global generator as it was."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
