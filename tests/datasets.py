"""A small task, its data set, and raw files of it."""

import numpy as np

from trqam_fast.data.names import parse_dataset

TASK = "pointmaze-medium-navigate-singletask-task1-v0"
MAZE = parse_dataset("pointmaze-medium-navigate-v0")


def raw_arrays(trajectories=6, rows=11, seed=0):
    """A raw pointmaze file: random places, some of them at the goals."""
    rng = np.random.default_rng(seed)
    count = trajectories * rows
    places = rng.uniform(-1, 22, size=(count, 2)).astype(np.float32)
    return {
        "observations": places,
        "actions": rng.uniform(-1, 1, size=(count, 2)).astype(np.float32),
        "terminals": np.arange(count) % rows == rows - 1,
        "qpos": np.where(rng.random((count, 1)) < 0.3, 20.0, places).astype(np.float32),
        "qvel": np.zeros((count, 2), np.float32),
    }
