"""Success of a policy in the simulator."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import gymnasium
import numpy as np
import torch

from trqam_fast.agents import Agent
from trqam_fast.data.names import parse_task


class EpisodeResult(NamedTuple):
    """Outcome of one episode: `success` of the final step, undiscounted return, length."""

    success: float
    episode_return: float
    length: int


class _Slot:
    """One environment and the episode it is playing."""

    def __init__(self, env_id: str) -> None:
        self.env = gymnasium.make(env_id, disable_env_checker=True)
        self.queue: deque[np.ndarray] = deque()

    def start(self, episode: int, seed: int) -> None:
        """Begin an episode whose random numbers follow from (seed, episode) alone."""
        self.episode = episode
        self.rng = np.random.default_rng([seed, episode])
        np.random.seed(int(self.rng.integers(2**32)))
        # The spaces sample in reset of some environments, from a generator of their own.
        self.env.action_space.seed(int(self.rng.integers(2**31)))
        self.observation, _ = self.env.reset(seed=int(self.rng.integers(2**31)))
        self.global_state = np.random.get_state()
        self.queue.clear()
        self.total, self.length = 0.0, 0

    def step(self) -> EpisodeResult | None:
        """Take the next queued action; return the result when the episode has ended."""
        action = np.clip(self.queue.popleft(), -1.0, 1.0)
        # Some mazes draw from numpy's global generator, so every episode has its own state of it.
        np.random.set_state(self.global_state)
        self.observation, reward, terminated, truncated, info = self.env.step(action)
        self.global_state = np.random.get_state()
        self.total += float(reward)
        self.length += 1
        if not (terminated or truncated):
            return None
        return EpisodeResult(float(info["success"]), self.total, self.length)


class Evaluator:
    """Plays episodes in several environments at once, one policy call for all of them.

    Environments are kept between evaluations. Episode i of an evaluation depends on the
    evaluation's seed and i alone, not on how many environments play.
    """

    def __init__(self, env_name: str, envs: int) -> None:
        env_id = parse_task(env_name).env_id
        self.slots = [_Slot(env_id) for _ in range(envs)]

    def close(self) -> None:
        """Close all environments."""
        for slot in self.slots:
            slot.env.close()

    def evaluate(self, agent: Agent, run: int, episodes: int, seed: int) -> list[EpisodeResult]:
        """Play `episodes` episodes with the policy of one run.

        Args:
            agent: The agent; its acting field is used.
            run: Index of the run in [0, S).
            episodes: Number of episodes.
            seed: Seed of the episodes' environments and of the policy's noise.

        Returns:
            One result per episode, in order.
        """
        results: dict[int, EpisodeResult] = {}
        waiting = deque(range(episodes))
        active = self.slots[:episodes]
        with _restored_global_state():
            for slot in active:
                slot.start(waiting.popleft(), seed)
            while active:
                asking = [slot for slot in active if not slot.queue]
                if asking:
                    self._act(agent, run, asking)
                for slot in list(active):
                    result = slot.step()
                    if result is None:
                        continue
                    results[slot.episode] = result
                    if waiting:
                        slot.start(waiting.popleft(), seed)
                    else:
                        active.remove(slot)
        return [results[episode] for episode in range(episodes)]

    @staticmethod
    def _act(agent: Agent, run: int, slots: list[_Slot]) -> None:
        """Fill the queues of `slots` with one batched policy call."""
        count = agent.config.best_of_n
        observations = np.stack([slot.observation for slot in slots])
        noise = np.stack([slot.rng.standard_normal((count, agent.dim)) for slot in slots])
        options = {"dtype": agent.dtype, "device": agent.device}
        actions = agent.act(
            torch.as_tensor(observations, **options).unsqueeze(0),
            torch.as_tensor(noise, **options).unsqueeze(0),
            run=run,
        )
        chunks = actions[0].cpu().numpy().reshape(len(slots), -1, agent.act_dim)
        for slot, chunk in zip(slots, chunks, strict=True):
            slot.queue.extend(chunk)


@contextlib.contextmanager
def _restored_global_state() -> Iterator[None]:
    """Leave numpy's global generator as it was."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
