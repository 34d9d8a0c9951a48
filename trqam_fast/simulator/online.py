"""An environment that online fine-tuning acts in: seeded per episode, restored exactly."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch

from trqam_fast.errors import RunError
from trqam_fast.simulator.environment import (
    begin,
    make_env,
    physics,
    restored_global_state,
    simulation,
    widths,
)


class Step(NamedTuple):
    """What one step of the simulator gave.

    Attributes:
        transition: observations, actions, rewards, masks, terminals, next_observations, named as
            in a dataset; the mask is 0 where the task was solved, the terminal 1 where the episode
            ended.
        episode: Its index, success of the final step, undiscounted return and length, if the
            episode ended with this step; else None.
    """

    transition: dict[str, np.ndarray | np.float32]
    episode: dict[str, float] | None


class OnlineEnvironment:
    """One environment whose episodes follow from (seed, episode) and the actions alone.

    Args:
        env_id: Name in gymnasium's registry, or ``MODULE:FACTORY``.
        seed: Seed of all episodes.
        sparse: Reward 0 where the task is solved, -1 elsewhere.
        options: Further arguments of `make_env`.
    """

    def __init__(self, env_id: str, seed: int, *, sparse: bool = False, **options: Any) -> None:
        self.env = make_env(env_id, **options)
        self.seed, self.sparse = seed, sparse
        self.reset(0)

    def reset(self, episode: int) -> None:
        """Begin an episode."""
        with restored_global_state():
            self.observation = begin(self.env, np.random.default_rng([self.seed, episode]))
            self._global_state = np.random.get_state()
        self.episode = episode
        self.actions: list[np.ndarray] = []
        self.total = 0.0

    def step(self, action: np.ndarray) -> Step:
        """Take one action `[A]`; begin the next episode where this one ends."""
        observation, terminated, truncated, reward, success = self._simulate(action)
        if self.sparse:
            reward = 0.0 if reward == 0 else -1.0
        ended = terminated or truncated
        transition: dict[str, np.ndarray | np.float32] = {
            "observations": self.observation,
            "actions": action,
            "rewards": np.float32(reward),
            "masks": np.float32(not terminated),
            "terminals": np.float32(ended),
            "next_observations": observation,
        }
        self.observation = observation
        if not ended:
            return Step(transition, None)
        outcome = {
            "episode": self.episode, "success": success, "return": self.total,
            "length": len(self.actions),
        }  # fmt: skip
        self.reset(self.episode + 1)
        return Step(transition, outcome)

    def _simulate(self, action: np.ndarray) -> tuple[np.ndarray, bool, bool, float, float]:
        with restored_global_state():
            np.random.set_state(self._global_state)
            observation, reward, terminated, truncated, info = self.env.step(action)
            self._global_state = np.random.get_state()
        self.actions.append(action)
        self.total += float(reward)
        success = float(info["success"])
        return np.asarray(observation), terminated, truncated, float(reward), success

    def state_dict(self) -> dict[str, Any]:
        """Return the episode's index, its actions so far, and what they led to."""
        _, width = widths(self.env)
        actions = np.asarray(self.actions, dtype=np.float32).reshape(-1, width)
        return {
            "episode": self.episode,
            "actions": torch.from_numpy(actions),
            "observation": torch.from_numpy(self.observation.copy()),
            "physics": torch.from_numpy(physics(self.env)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Play the episode again up to where it was: that restores every attribute exactly.

        An environment that shows no MuJoCo state is compared by its observation alone. Where that
        differs, as it draws from something that its seed does not set, the next episode begins.

        Returns:
            Whether the episode goes on.

        Raises:
            RunError: MuJoCo does not reproduce the state that was saved.
        """
        self.reset(state["episode"])
        for action in state["actions"].numpy():
            self.observation = self._simulate(action)[0]
        same = np.array_equal(self.observation, state["observation"].numpy())
        own = simulation(self.env) is None
        if not same and own:
            warnings.warn(
                f"episode {self.episode} of an environment came to another observation when it "
                "was played again, so the next episode begins; from here on the run is not the "
                "uninterrupted one",
                stacklevel=2,
            )
            self.reset(state["episode"] + 1)
            return False
        if not same or not np.array_equal(physics(self.env), state["physics"].numpy()):
            raise RunError(
                f"episode {self.episode} of seed {self.seed} cannot be restored: the simulator "
                "gives another state after the same actions; resume with the versions in "
                "versions.json"
            )
        return True

    def close(self) -> None:
        """Close the environment."""
        self.env.close()
