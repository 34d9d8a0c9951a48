"""Generates pointmaze navigation data from the environment's own oracle directions plus noise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import ogbench  # noqa: F401  (registers the environments)
from tqdm import tqdm

EPISODE_STEPS = 1000
# Goals are uniform over the part of a cell that the point can reach, and count as reached within
# 0.25. With the environment's own values (1.0 and 1.0) the corners of dead ends, where tasks have
# their goals, would hold no data, and policies get stuck there.
GOAL_SPREAD = 1.3
ARRIVAL_RADIUS = 0.25


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which the mazes draw from, and restore it afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def generate(
    env_id: str, transitions: int, noise: float, seed: int, progress: bool = True
) -> dict[str, np.ndarray]:
    """Roll out a noisy expert that walks from goal to goal.

    At each step the action is the unit vector toward the oracle's next cell (toward the goal
    itself inside the goal's cell) plus Gaussian noise, clipped to [-1, 1]. A goal that is reached
    is replaced by a new one, uniform over the free space, so trajectories have a fixed length.

    Args:
        env_id: A goal-conditioned maze, e.g. ``pointmaze-medium-v0``.
        transitions: Number of transitions, rounded up to whole trajectories of 1000.
        noise: Standard deviation of the action noise.
        seed: Every trajectory's random numbers follow from (seed, its index).
        progress: Show a progress bar on a terminal.

    Returns:
        OGBench's arrays: observations, actions, terminals, qpos, qvel; a trajectory has 1001 rows.
    """
    env = gymnasium.make(
        env_id,
        terminate_at_goal=False,
        max_episode_steps=EPISODE_STEPS + 2,
        disable_env_checker=True,
    )
    maze = env.unwrapped
    cells = [tuple(int(i) for i in cell) for cell in np.argwhere(maze.maze_map == 0)]
    subgoals: dict[tuple, np.ndarray] = {}
    rows: dict[str, list] = {
        name: [] for name in ("observations", "actions", "terminals", "qpos", "qvel")
    }
    episodes = -(-transitions // EPISODE_STEPS)
    for episode in tqdm(range(episodes), desc="generate", unit="episode", disable=not progress):
        rng = np.random.default_rng([seed, episode])
        with global_seed(int(rng.integers(2**32))):
            start = cells[rng.integers(len(cells))]
            task = {"init_ij": start, "goal_ij": start}
            observation, _ = env.reset(seed=int(rng.integers(2**31)), options={"task_info": task})
            maze.set_goal(goal_xy=draw_goal(maze, cells, rng))
            for step in range(EPISODE_STEPS + 1):
                xy, goal_xy = maze.get_xy(), maze.cur_goal_xy
                key = (maze.xy_to_ij(xy), maze.xy_to_ij(goal_xy))
                if key not in subgoals:
                    subgoals[key] = maze.get_oracle_subgoal(xy, goal_xy)[0]
                target = goal_xy if key[0] == key[1] else subgoals[key]
                direction = (target - xy) / (np.linalg.norm(target - xy) + 1e-6)
                action = np.clip(direction + noise * rng.standard_normal(2), -1.0, 1.0)
                rows["observations"].append(observation)
                rows["actions"].append(action)
                rows["terminals"].append(step == EPISODE_STEPS)
                rows["qpos"].append(maze.data.qpos.copy())
                rows["qvel"].append(maze.data.qvel.copy())
                observation, *_ = env.step(action)
                if np.linalg.norm(maze.get_xy() - goal_xy) < ARRIVAL_RADIUS:
                    maze.set_goal(goal_xy=draw_goal(maze, cells, rng))
    env.close()
    dtypes = {"terminals": np.bool_}
    return {
        name: np.asarray(values, dtype=dtypes.get(name, np.float32))
        for name, values in rows.items()
    }


def draw_goal(maze: Any, cells: list[tuple[int, int]], rng: np.random.Generator) -> np.ndarray:
    """Draw a point uniformly from the free space."""
    centre = maze.ij_to_xy(cells[rng.integers(len(cells))])
    return np.asarray(centre) + rng.uniform(-GOAL_SPREAD, GOAL_SPREAD, size=2)
