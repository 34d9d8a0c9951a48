"""What the scripted experts have in common: random numbers, rows and the length of a trajectory."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np

from trqam_fast.simulator.environment import make_env

EPISODE_STEPS = 1000
"""Transitions of a trajectory; it has one row more, whose action leads nowhere."""

Stream = Literal["train", "val"]
Episode = dict[str, np.ndarray]
DTYPES = {"terminals": np.bool_, "button_states": np.int64}


def episode_generator(seed: int, stream: Stream, index: int) -> np.random.Generator:
    """Return the generator of all random numbers of one trajectory."""
    spawn_key = () if stream == "train" else (1,)
    return np.random.default_rng(np.random.SeedSequence([seed, index], spawn_key=spawn_key))


class Expert(ABC):
    """Rolls out trajectories, each of which depends on its own random numbers alone.

    Args:
        env_id: The goal-conditioned environment.
        seed: Seed of all trajectories.
        options: Arguments of the environment.
    """

    def __init__(self, env_id: str, seed: int, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*DISPLAY")  # nothing is drawn
            self.env = make_env(
                env_id,
                terminate_at_goal=False,
                max_episode_steps=EPISODE_STEPS + 2,
                **options,
            )
        self.seed = seed

    def episode(self, stream: Stream, index: int) -> Episode:
        """Return one trajectory.

        Returns:
            observations, actions, qpos and qvel [1001, ?] float32, terminals [1001] bool, true in
            the last row alone; where the environment has buttons, button_states [1001, ?] int64.
        """
        rng = episode_generator(self.seed, stream, index)
        while (rows := self.roll(rng)) is None:
            pass
        rows["terminals"] = [row == EPISODE_STEPS for row in range(EPISODE_STEPS + 1)]
        return {
            name: np.asarray(values, dtype=DTYPES.get(name, np.float32))
            for name, values in rows.items()
        }

    @abstractmethod
    def roll(self, rng: np.random.Generator) -> dict[str, list] | None:
        """Roll out a trajectory of 1001 rows, or return None where it has to be repeated."""

    def close(self) -> None:
        """Close the environment."""
        self.env.close()
