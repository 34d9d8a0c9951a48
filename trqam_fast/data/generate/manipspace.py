"""Manipulation data (cube, scene, puzzle) from the scripted oracles in the ogbench package."""

from __future__ import annotations

import numpy as np
from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

from trqam_fast.data.generate.expert import EPISODE_STEPS, Expert
from trqam_fast.simulator.environment import global_seed

# The figures of this file are those of OGBench's generator and of its published command lines.
NOISE_SMOOTHING = 0.5
MIN_NORM = 0.4
# Range of an episode's probability that a cube is to be put on another one.
STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}
OTHER_STACKING = (0.5, 0.5)
RANDOM_ACTIONS = {"cube": 0.1, "scene": 0.1, "puzzle": 0.2}
# Noise of x, y, z, yaw and gripper relative to the episode's noise level.
NOISY_SCALE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])

OBJECTS = {
    "cube": ("cube",),
    "puzzle": ("button",),
    "scene": ("cube", "button", "drawer", "window"),
}
PLAN = {
    "cube": CubePlanOracle,
    "button": ButtonPlanOracle,
    "drawer": DrawerPlanOracle,
    "window": WindowPlanOracle,
}
MARKOV = {
    "cube": CubeMarkovOracle,
    "button": ButtonMarkovOracle,
    "drawer": DrawerMarkovOracle,
    "window": WindowMarkovOracle,
}


class ManipspaceExpert(Expert):
    """The oracles that pursue one random target after the other.

    The ``play`` kind follows plans with temporally correlated noise. The ``noisy`` kind reacts to
    the present state; its actions have Gaussian noise whose level is drawn for each trajectory,
    and some actions are uniformly random.

    Args:
        name: Environment and kind, e.g. ``cube-double-play``.
        noise: Noise of the plans, or the highest level of the noisy kind's action noise.
        seed: Seed of all trajectories.
    """

    def __init__(self, name: str, noise: float, seed: int) -> None:
        env_name, _, kind = name.rpartition("-")
        super().__init__(f"{env_name}-v0", seed, mode="data_collection")
        self.family = env_name.partition("-")[0]
        self.noisy = kind == "noisy"
        self.noise = noise
        self.stacking = STACKING.get(env_name, OTHER_STACKING)
        self.random_actions = RANDOM_ACTIONS[self.family] if self.noisy else 0.0
        if self.noisy:
            oracles, settings = MARKOV, {"min_norm": MIN_NORM}
        else:
            oracles, settings = PLAN, {"noise": noise, "noise_smoothing": NOISE_SMOOTHING}
        if self.family == "puzzle":
            settings["gripper_always_closed"] = True
        self.oracles = {
            task: oracles[task](env=self.env, **settings) for task in OBJECTS[self.family]
        }

    def roll(self, rng: np.random.Generator) -> dict[str, list] | None:
        """Roll out a trajectory of 1001 rows, or return None where the scene lost its cube."""
        names = {"observations": None, "actions": None, "qpos": "prev_qpos", "qvel": "prev_qvel"}
        if self.family != "cube":
            names["button_states"] = "prev_button_states"
        rows: dict[str, list] = {name: [] for name in names}
        with global_seed(int(rng.integers(2**32))):
            observation, info = self.env.reset(seed=int(rng.integers(2**31)))
            p_stack = rng.uniform(*self.stacking)
            level = rng.uniform(0, self.noise) * NOISY_SCALE
            oracle = self.oracles[info["privileged/target_task"]]
            oracle.reset(observation, info)
            for _ in range(EPISODE_STEPS + 1):
                # The action space cannot be seeded: the environment makes a new one for each use.
                if rng.random() < self.random_actions:
                    action = rng.uniform(-1.0, 1.0, size=5)
                else:
                    action = oracle.select_action(observation, info)
                    if self.noisy:
                        action = action + rng.normal(0.0, level)
                action = np.clip(action, -1.0, 1.0)
                rows["observations"].append(observation)
                rows["actions"].append(action)
                observation, _, _, _, info = self.env.step(action)
                for name, source in names.items():
                    if source is not None:
                        rows[name].append(info[source])
                if oracle.done:
                    # As in OGBench's generator, the next action is still chosen from `info`.
                    start = self.env.get_wrapper_attr("set_new_target")(p_stack=p_stack)
                    oracle = self.oracles[start[1]["privileged/target_task"]]
                    oracle.reset(*start)
        return rows if self.family != "scene" or is_healthy(np.array(rows["qpos"])) else None


def is_healthy(qpos: np.ndarray) -> bool:
    """Return whether a scene's cube stayed where cameras see it, or was put into the drawer.

    Args:
        qpos: Generalized positions [T, ?]; the cube's are at 14 to 16.
    """
    _, y, z = qpos[:, 14:17].T
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return bool((y < 0.29).all() and ((y > -0.3) | in_drawer).all())
