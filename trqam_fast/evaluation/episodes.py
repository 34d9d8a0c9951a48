"""Episodes whose outcome follows from (seed, episode) and the policy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trqam_fast.simulator.environment import (
    begin,
    draw_simply,
    make_env,
    restored_global_state,
)

if TYPE_CHECKING:
    from trqam_fast.evaluation.video import VideoWriter


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


Order = Start | np.ndarray
"""What a slot has to do: begin an episode, or play a chunk."""
Reply = Request | EpisodeResult


class Slot:
    """One environment, reused from episode to episode, and the episode it is playing."""

    def __init__(self, env_id: str, options: dict[str, Any]) -> None:
        self.env = make_env(env_id, **options)
        self.video: VideoWriter | None = None

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

    def play(self, chunk: np.ndarray) -> Reply:
        """Execute a chunk `[H, A]` open loop, or as much of it as the episode lasts."""
        np.random.set_state(self.global_state)
        for action in np.clip(chunk, -1.0, 1.0):
            observation, reward, terminated, truncated, info = self.env.step(action)
            self.total += float(reward)
            self.length += 1
            if self.video is not None:
                self.video.add(self.frame())
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
            from trqam_fast.evaluation.video import VideoWriter

            draw_simply(self.env)
            first = self.frame()
            height, width = first.shape[:2]
            rate = self.env.metadata.get("render_fps")
            self.video = VideoWriter(path, (width, height), rate)
            self.video.add(first)

    def frame(self) -> np.ndarray:
        """Return what the environment shows, `[height, width, 3]`."""
        return np.asarray(self.env.render())


class Troupe:
    """The environments of one process, made when they are first needed."""

    def __init__(self, env_id: str, options: dict[str, Any]) -> None:
        self.env_id, self.options = env_id, options
        self.slots: dict[int, Slot] = {}

    def play(self, orders: Sequence[tuple[int, Order]]) -> list[Reply]:
        """Carry out one order for each of several slots; numpy's global generator is kept.

        Args:
            orders: Pairs of a slot's number and what it has to do: start, or play a chunk.

        Returns:
            One reply for each order.
        """
        replies: list[Reply] = []
        with restored_global_state():
            for number, order in orders:
                if number not in self.slots:
                    self.slots[number] = Slot(self.env_id, self.options)
                slot = self.slots[number]
                if isinstance(order, Start):
                    replies.append(slot.start(order))
                else:
                    replies.append(slot.play(order))
        return replies

    def close(self) -> None:
        """Close all environments."""
        for slot in self.slots.values():
            slot.open_video(None)
            slot.env.close()
        self.slots.clear()
