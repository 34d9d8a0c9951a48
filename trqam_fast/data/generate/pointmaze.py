"""Pointmaze navigation data from the environment's own oracle directions plus noise."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from trqam_fast.data.generate.expert import EPISODE_STEPS, Expert
from trqam_fast.simulator.environment import global_seed

# A goal is up to 1.3 from its cell's centre along either axis, where the point can go, and counts
# as reached within 0.25. With the environment's own values (1.0 and 1.0) the corners of dead ends,
# where tasks have their goals, would hold no data, and policies get stuck there. Of a thousand
# uniform goals, too, none may lie in the corner that matters. With `corners`, half of them are at
# least 0.9 from the centre along both axes, and all count as reached within 0.15.
GOAL_SPREAD = 1.3
CORNER = 0.9
ARRIVAL_RADIUS, ARRIVAL_RADIUS_WITH_CORNERS = 0.25, 0.15


class MazeExpert(Expert):
    """A noisy expert that walks from goal to goal.

    At each step the action is the unit vector toward the oracle's next cell (toward the goal
    itself inside the goal's cell) plus Gaussian noise, clipped to [-1, 1]. A goal that is reached
    is replaced by a new one, uniform over the free space, so trajectories have a fixed length.

    Args:
        env_id: A goal-conditioned maze, e.g. ``pointmaze-medium-v0``.
        noise: Standard deviation of the action noise.
        seed: Seed of all trajectories.
        corners: Half of the goals lie in the corners of cells instead.
    """

    def __init__(self, env_id: str, noise: float, seed: int, corners: bool = False) -> None:
        super().__init__(env_id, seed)
        self.noise, self.corners = noise, corners
        self.radius = ARRIVAL_RADIUS_WITH_CORNERS if corners else ARRIVAL_RADIUS
        self.maze = cast(Any, self.env.unwrapped)  # with OGBench's own methods
        self.cells = [tuple(int(i) for i in cell) for cell in np.argwhere(self.maze.maze_map == 0)]
        self.subgoals: dict[tuple, np.ndarray] = {}

    def roll(self, rng: np.random.Generator) -> dict[str, list]:
        """Roll out a trajectory of 1001 rows."""
        maze, cells = self.maze, self.cells
        rows: dict[str, list] = {k: [] for k in ("observations", "actions", "qpos", "qvel")}
        with global_seed(int(rng.integers(2**32))):
            start = cells[rng.integers(len(cells))]
            task = {"init_ij": start, "goal_ij": start}
            seed = int(rng.integers(2**31))
            observation, _ = self.env.reset(seed=seed, options={"task_info": task})
            maze.set_goal(goal_xy=self.draw_goal(rng))
            for _ in range(EPISODE_STEPS + 1):
                xy, goal_xy = maze.get_xy(), maze.cur_goal_xy
                direction = self.target(xy, goal_xy) - xy
                direction = direction / (np.linalg.norm(direction) + 1e-6)
                action = np.clip(direction + self.noise * rng.standard_normal(2), -1.0, 1.0)
                rows["observations"].append(observation)
                rows["actions"].append(action)
                rows["qpos"].append(maze.data.qpos.copy())
                rows["qvel"].append(maze.data.qvel.copy())
                observation, *_ = self.env.step(action)
                if np.linalg.norm(maze.get_xy() - goal_xy) < self.radius:
                    maze.set_goal(goal_xy=self.draw_goal(rng))
        return rows

    def target(self, xy: np.ndarray, goal_xy: np.ndarray) -> np.ndarray:
        """Return the point to walk to, which depends on the cells of the two positions."""
        key = (self.maze.xy_to_ij(xy), self.maze.xy_to_ij(goal_xy))
        if key[0] == key[1]:
            return goal_xy
        if key not in self.subgoals:
            self.subgoals[key] = self.maze.get_oracle_subgoal(xy, goal_xy)[0]
        return self.subgoals[key]

    def draw_goal(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a point uniformly from the free space, or from the corners of its cells."""
        centre = np.asarray(self.maze.ij_to_xy(self.cells[rng.integers(len(self.cells))]))
        if not self.corners:
            return centre + rng.uniform(-GOAL_SPREAD, GOAL_SPREAD, size=2)
        nearest, signs = rng.choice([0.0, CORNER]), rng.choice([-1, 1], size=2)
        return centre + signs * rng.uniform(nearest, GOAL_SPREAD, size=2)
